// Runs a round until it has 20 valid nonces, and prints how it ended. Needs a worker that lives.
//
//	POC_REDIS_URL=redis://127.0.0.1:6379/0 go run .
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// redis is one connection. A program of yours takes a library: this one needs nothing but Go.
type redis struct {
	net.Conn
	replies *bufio.Reader
}

func dial(address string) (*redis, error) {
	at, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", at.Host)
	if err != nil {
		return nil, err
	}
	client := &redis{conn, bufio.NewReader(conn)}
	if password, given := at.User.Password(); given {
		words := []string{"AUTH", password}
		if name := at.User.Username(); name != "" {
			words = []string{"AUTH", name, password}
		}
		if _, err := client.do(words...); err != nil {
			return nil, err
		}
	}
	if database := strings.Trim(at.Path, "/"); database != "" {
		if _, err := client.do("SELECT", database); err != nil {
			return nil, err
		}
	}
	return client, nil
}

// do sends a command and gives its reply: a line or a string; nil for none.
func (client *redis) do(words ...string) ([]byte, error) {
	fmt.Fprintf(client, "*%d\r\n", len(words))
	for _, word := range words {
		fmt.Fprintf(client, "$%d\r\n%s\r\n", len(word), word)
	}
	line, err := client.replies.ReadString('\n')
	if err != nil {
		return nil, err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	switch kind {
	case '-':
		return nil, errors.New(rest)
	case '$':
		size, err := strconv.Atoi(rest)
		if err != nil || size < 0 {
			return nil, err
		}
		text := make([]byte, size+2)
		_, err = io.ReadFull(client.replies, text)
		return text[:size], err
	}
	return []byte(rest), nil
}

// message is a task as Celery's protocol 2 has it; []byte becomes base64.
func message(task, id, queue string, arguments any) ([]byte, error) {
	body, err := json.Marshal([]any{[]any{}, arguments, map[string]any{}})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"body":             body,
		"content-type":     "application/json",
		"content-encoding": "utf-8",
		"headers":          map[string]any{"task": task, "id": id},
		"properties": map[string]any{
			"correlation_id": id,
			"body_encoding":  "base64",
			"delivery_tag":   id,
			"delivery_info":  map[string]any{"exchange": "", "routing_key": queue},
		},
	})
}

// answer is how a task stands.
type answer struct {
	Status string          `json:"status"`
	Result json.RawMessage `json:"result"`
}

// status has some of the fields of a round's status.
type status struct {
	State        string    `json:"state"`
	TotalChecked int64     `json:"total_checked"`
	TotalValid   int64     `json:"total_valid"`
	Nonces       []int64   `json:"valid_nonces"`
	Distances    []float64 `json:"valid_distances"`
}

// wait polls until the task has ended.
func wait(client *redis, id string, patience time.Duration) (status, error) {
	var ended status
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		raw, err := client.do("GET", "celery-task-meta-"+id)
		if err != nil {
			return ended, err
		}
		var found answer
		if raw != nil { // else no worker has it yet
			if err := json.Unmarshal(raw, &found); err != nil {
				return ended, err
			}
		}
		switch found.Status {
		case "SUCCESS":
			return ended, json.Unmarshal(found.Result, &ended)
		case "FAILURE", "REVOKED":
			return ended, fmt.Errorf("%s: %s", found.Status, found.Result)
		}
		time.Sleep(250 * time.Millisecond)
	}
	return ended, fmt.Errorf("%s has not ended after %s", id, patience)
}

func setting(name, usual string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return usual
}

func run() error {
	client, err := dial(setting("POC_REDIS_URL", "redis://127.0.0.1:6379/0"))
	if err != nil {
		return err
	}
	defer client.Close()

	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	id, queue := fmt.Sprintf("%x", random), "poc."+setting("POC_NAMESPACE", "default")
	task, err := message("poc.generate", id, queue, map[string]any{
		"config": map[string]any{
			"block_hash": "ab12", "block_height": 7, "public_key": "me", "r_target": 1.4, "seq_len": 64,
		},
		"replace":     true,
		"until_valid": 20,
	})
	if err != nil {
		return err
	}
	if _, err := client.do("LPUSH", queue, string(task)); err != nil {
		return err
	}
	ended, err := wait(client, id, time.Minute)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d checked, %d valid\n", ended.State, ended.TotalChecked, ended.TotalValid)
	fmt.Printf("the first: %d with distance %g\n", ended.Nonces[0], ended.Distances[0])
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
