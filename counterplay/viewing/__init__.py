"""The page that shows a store: what it holds as JSON, and the built front end beside it."""
