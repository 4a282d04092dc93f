"""What an attacker learns of a client's training samples from what the client sends."""
