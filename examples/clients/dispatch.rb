# Dispatch a task in your own transaction, and wait for it: the pg gem.
#
# JSON is a string, a list of strings goes through an array encoder.

require "json"
require "pg"

connection = PG.connect(ENV.fetch("MILLHAND_DATABASE_URL"))
list = PG::TextEncoder::Array.new

task = connection.transaction do |transaction|
  # Your own statements here.
  transaction.exec_params(
    "SELECT millhand.dispatch($1, $2, exclusive => $3, shared => $4)",
    ["greet", JSON.generate(who: "Ada"), list.encode(["door"]), list.encode(["house"])]
  ).getvalue(0, 0)
end

state = result = error = nil
until %w[completed failed canceled].include?(state)
  sleep 0.1 if state
  state, result, error = connection.exec_params(
    "SELECT state, result, error FROM millhand.task WHERE id = $1", [task]
  ).values.first
end
puts "#{state} #{state == "completed" ? JSON.parse(result) : error}"
