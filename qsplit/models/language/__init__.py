"""The language half: features and questions -> answers, chances and log probabilities."""
