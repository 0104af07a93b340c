"""From a sound file to log-mel windows."""
