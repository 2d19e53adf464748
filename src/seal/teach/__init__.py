"""Your documents: read them, quiz, write, train, prove, ask."""
