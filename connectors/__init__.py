"""One file a source: a foreign log becomes `Trace`s. Parsing happens at the edge; what can't be read is named, not dropped."""
