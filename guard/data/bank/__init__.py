"""The retain bank: prompts about topics that guards leave alone, whatever they are of."""
