"""From what a detector sees to detections: prompts, post-processing, tiles and nested searches. numpy only."""
