"""What a nonce is turned into, in tensors: one file a scheme, and what the schemes share."""
