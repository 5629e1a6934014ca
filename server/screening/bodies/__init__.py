"""The texts of a JSON body: where they stand, JSON in strings, and writing them back."""
