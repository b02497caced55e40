// Dispatch a task in your own transaction, and wait for it: the pg package.
//
// An object is JSON, an array of strings is text[] as it is; JSON that is an array or a
// string needs JSON.stringify.

const { Client } = require("pg");

async function main() {
  const client = new Client({ connectionString: process.env.MILLHAND_DATABASE_URL });
  await client.connect();
  await client.query("BEGIN");
  // Your own statements here.
  const { rows } = await client.query(
    "SELECT millhand.dispatch($1, $2, exclusive => $3, shared => $4) AS id",
    ["greet", { who: "Ada" }, ["door"], ["house"]],
  );
  await client.query("COMMIT");

  let task;
  do {
    if (task) await new Promise((resolve) => setTimeout(resolve, 100));
    const found = await client.query(
      "SELECT state, result, error FROM millhand.task WHERE id = $1",
      [rows[0].id],
    );
    task = found.rows[0];
  } while (!["completed", "failed", "canceled"].includes(task.state));
  console.log(task.state, task.state === "completed" ? task.result : task.error);
  await client.end();
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
