"""Light curves of objects: correction of magnitudes, assembly from alerts, statistics, and features."""
