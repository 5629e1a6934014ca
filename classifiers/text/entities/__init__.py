"""Names of people, places and organisations in texts, by a language model of the operator's own.

Presidio's recognisers read what a model finds: `spacy_pipeline` runs a pipeline of spaCy,
`token_classifier` a model of transformers, both as a `recognizer`. `sources` tells, without any
of these libraries, what a model is and what it needs. `chunks` divides long texts, so that all
takes time linear in the text.
"""
