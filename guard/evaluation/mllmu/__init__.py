"""Suite `mllmu`: unlearning in vision-language models, as MLLMU-Bench and its successors ask."""
