"""The commands of `raft-peft`, one a file. Each loads what it needs when it runs."""
