"""The console: pages for people, and what they ask for beside the rest of the API."""
