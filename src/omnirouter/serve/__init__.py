"""Using a trained model: audio of any length and format to text."""
