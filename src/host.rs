//! Changes the host itself: folders, processes, proxy logs and the timer that rotates them.

pub(crate) mod folders;
pub(crate) mod log_timer;
pub(crate) mod mounts;
pub(crate) mod proxy_logs;
pub(crate) mod server_process;
