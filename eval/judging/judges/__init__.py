"""One file per judge, with its prompt or its data beside it under the same name."""
