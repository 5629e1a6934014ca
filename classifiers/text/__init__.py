"""What reads text: folding, disguises undone, patterns. No torch: a proxy runs it without."""
