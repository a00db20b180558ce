//! The agent's only unsafe code: system calls that no safe wrapper covers.
