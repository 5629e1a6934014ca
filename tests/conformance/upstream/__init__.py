"""An upstream that speaks chat, responses, messages and embeddings, and answers as it is told."""
