"""Reports: self-contained HTML pages with plots, tables of the terminal, progress."""
