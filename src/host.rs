//! What is done on the host itself: folders, processes, the log files of proxies and the timer that rotates them.

pub(crate) mod folders;
pub(crate) mod log_timer;
pub(crate) mod mounts;
pub(crate) mod proxy_logs;
pub(crate) mod server_process;
