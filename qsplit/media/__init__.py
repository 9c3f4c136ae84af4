"""Files of pictures and films -> pixels, times, places and hashes; knows neither models nor the store."""
