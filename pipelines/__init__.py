"""One thin module per DVC stage: read params, call the library, write evidence. Each runs without DVC too."""
