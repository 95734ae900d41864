"""The bundled model's prompts, and the main job that `circuit-trace demo` runs."""
