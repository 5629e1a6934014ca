"""`guard chat`: a conversation in the terminal, with a server of its own or a running one."""
