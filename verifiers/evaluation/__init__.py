"""The truth about verifiers: what they say held against labels, against themselves, and against those who would please them."""
