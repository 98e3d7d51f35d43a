"""What there is once in a process: who is registered, the reaper, forks, the collector."""
