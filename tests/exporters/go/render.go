// Fills in templates as Ollama does: reads one JSON list of cases, writes the list of texts.
//
// As in template/template.go of Ollama (commit fb3076099): a map without a missing key, .System joins the system
// messages, and they are among .Messages as well; neighbours of one role become one message.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role, Content string
	Images        []string
}

type job struct {
	Template string
	Messages []*message
}

func render(one job) string {
	var system []string
	var messages []*message
	for _, next := range one.Messages {
		if next.Role == "system" {
			system = append(system, next.Content)
		}
		if last := len(messages) - 1; last >= 0 && messages[last].Role == next.Role {
			messages[last].Content += "\n\n" + next.Content
		} else {
			messages = append(messages, next)
		}
	}
	made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
	var text strings.Builder
	values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": messages, "Response": ""}
	if err := made.Execute(&text, values); err != nil {
		panic(err)
	}
	return text.String()
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, one := range jobs {
		texts = append(texts, render(one))
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
