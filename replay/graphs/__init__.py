"""LangGraph threads gone back to: checkpoints read, graphs bound to a copy in memory, tools answered without being executed."""
