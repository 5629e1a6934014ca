"""What servers of one service share: counts of limits and the state of breakers, in a store."""
