// Dispatch a task in your own transaction, and wait for it: database/sql with lib/pq.
//
// JSON is a string, a list of strings goes through pq.Array.
package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/lib/pq"
)

func dispatch(database *sql.DB) (id int64, err error) {
	args, err := json.Marshal(map[string]string{"who": "Ada"})
	if err != nil {
		return 0, err
	}
	transaction, err := database.Begin()
	if err != nil {
		return 0, err
	}
	defer transaction.Rollback()
	// Your own statements here.
	err = transaction.QueryRow(
		"SELECT millhand.dispatch($1, $2, exclusive => $3, shared => $4)",
		"greet", string(args), pq.Array([]string{"door"}), pq.Array([]string{"house"}),
	).Scan(&id)
	if err != nil {
		return 0, err
	}
	return id, transaction.Commit()
}

func main() {
	database, err := sql.Open("postgres", os.Getenv("MILLHAND_DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	id, err := dispatch(database)
	if err != nil {
		log.Fatal(err)
	}
	for {
		var state string
		var result, reason sql.NullString
		err := database.QueryRow(
			"SELECT state, result, error FROM millhand.task WHERE id = $1", id,
		).Scan(&state, &result, &reason)
		if err != nil {
			log.Fatal(err)
		}
		switch state {
		case "completed":
			var greeting string
			if err := json.Unmarshal([]byte(result.String), &greeting); err != nil {
				log.Fatal(err)
			}
			fmt.Println(state, greeting)
			return
		case "failed", "canceled":
			fmt.Println(state, reason.String)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}
