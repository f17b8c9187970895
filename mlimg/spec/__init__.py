"""The spec: what a person writes in `mlimg.yaml` and lays over it. `docs/spec.md` describes every key."""
