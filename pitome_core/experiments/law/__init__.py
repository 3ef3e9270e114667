"""When energy helps: what decides whether merging by energy keeps more of a task than ToMe does."""
