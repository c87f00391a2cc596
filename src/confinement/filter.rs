//! Filters a server process's system calls: a refused call fails with "Operation not permitted".

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// The system calls that a process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AllowedCalls {
    /// For the server, and so for everything it starts: all calls that neither change the system nor leave the machine.
    Server,
    /// For a process that runs gpg or connects to a display: the server's calls, minus those not covered by Landlock.
    Programs,
    /// For a process that uses only the sockets it was given, connects to nothing and starts nothing.
    Worker {
        /// True if it opens files.
        files: bool,
    },
}

/// System calls that administer a machine or reach into other processes. Docker's and systemd's default filters deny
/// the first part as well (`systemd-analyze syscall-filter`: @clock, @module, @mount, @raw-io, @reboot,
/// @swap, @obsolete; profiles/seccomp/default.json of moby).
const ADMINISTRATION: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    // The kernel's keyrings.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // These make system calls that no filter sees.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
];

/// System calls on a process's sockets, threads and memory.
const WORK: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    // A separate filter handles it.
    libc::SYS_clone3,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_socketpair,
    libc::SYS_statx,
    // Only for its own threads: a rule fixes the process ID.
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// System calls on files; Landlock limits which files.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_statfs,
    libc::SYS_umask,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// File changes that no Landlock right covers: to any file by its path, or to one open for reading.
const UNRULED: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_futimesat,
    libc::SYS_lchown,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    // Its flags are behind a pointer.
    libc::SYS_openat2,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    libc::SYS_truncate,
    libc::SYS_utime,
    libc::SYS_utimensat,
    libc::SYS_utimes,
];
/// System calls that reach other processes of the same user and escape Landlock's rules: priorities, shared memory.
const OTHERS: &[i64] = &[
    libc::SYS_ioprio_set,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_setpriority,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmget,
];
/// System calls newer than this program, from `setxattrat` on: some change files by path. The numbers after these
/// belong to the x32 ABI.
const NEWER: std::ops::Range<i64> = 463..512;
/// `fcntl` commands that make a file send signals to any process (`F_SETOWN`, `F_SETSIG`, `F_SETOWN_EX`).
const OWNERS: [u64; 3] = [8, 10, 15];
/// `ioctl` requests that do the same (`FIOSETOWN`, `SIOCSPGRP`), or type into the terminal that started the server.
const CONTROLS: [u64; 3] = [0x8901, 0x8902, libc::TIOCSTI];
/// `clone` flags that create a namespace (`clone(2)`).
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;
/// A system call of the x32 ABI has this bit and the same architecture (`seccomp(2)`); none of our programs makes one.
const X32: i64 = 0x4000_0000;

/// The rules for each system call; a call without rules matches with any arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A comparison of an argument's lower 32 bits with a value.
type Comparison = (u8, SeccompCmpOp, u64);

/// Installs the filter for this thread and those that it starts.
///
/// # Errors
///
/// Fails if the kernel does not support filters, or does not let this process install one.
pub(super) fn install(calls: AllowedCalls, network: bool) -> Result<(), seccompiler::Error> {
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    // Its flags are behind a pointer, which no filter follows; the C library then falls back to `clone`.
    let clone3 = Rules::from([any(libc::SYS_clone3)]);
    apply(clone3, SeccompAction::Allow, unknown)?;
    match calls {
        AllowedCalls::Server => apply(denied(network)?, SeccompAction::Allow, refuse),
        AllowedCalls::Programs => {
            let rules = denied_to_programs(network)?;
            apply(rules, SeccompAction::Allow, refuse)
        }
        AllowedCalls::Worker { files } => apply(allowed(files)?, refuse, SeccompAction::Allow),
    }
}

fn apply(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<(), seccompiler::Error> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, matched, architecture)?;
    apply_filter(&BpfProgram::try_from(filter)?)
}

/// Builds the deny list for every server process.
fn denied(network: bool) -> Result<Rules, BackendError> {
    let mut rules: Rules = ADMINISTRATION.iter().copied().map(any).collect();
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
    let allowed = families.iter().take(if network { 3 } else { 1 });
    let other = allowed.map(|family| (0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs())));
    rules.insert(libc::SYS_socket, vec![all_of(other)?]);
    let flags = (0..u64::BITS).map(|bit| 1 << bit);
    let namespaces = flags
        .filter(|flag| NAMESPACES & flag != 0)
        .map(|flag| (0, SeccompCmpOp::MaskedEq(flag), flag));
    rules.insert(libc::SYS_clone, any_of(namespaces)?);
    let equal = |value| (1, SeccompCmpOp::Eq, value);
    rules.insert(libc::SYS_ioctl, any_of(CONTROLS.map(equal))?);
    rules.insert(libc::SYS_fcntl, any_of(OWNERS.map(equal))?);
    deny_x32(&mut rules);
    // In that ABI, `ptrace` and access to other processes' memory have numbers of their own.
    rules.extend([521, 539, 540].map(|call| any(call | X32)));
    Ok(rules)
}

/// Builds the deny list for a process that runs programs and whose files Landlock limits.
fn denied_to_programs(network: bool) -> Result<Rules, BackendError> {
    let mut rules = denied(network)?;
    rules.extend(UNRULED.iter().chain(OTHERS).copied().map(any));
    rules.extend(NEWER.map(any));
    // Otherwise, a file that may only be read could be emptied, and one that may not be opened at all would yield a
    // descriptor for neither reading nor writing: access mode 3 (`open(2)`).
    let mask = (libc::O_ACCMODE | libc::O_TRUNC) as u64;
    let empties = (libc::O_RDONLY | libc::O_TRUNC) as u64;
    let neither = libc::O_ACCMODE as u64;
    for (call, argument) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
        let both = [(mask, empties), (neither, neither)];
        let both = both.map(|(mask, value)| (argument, SeccompCmpOp::MaskedEq(mask), value));
        rules.insert(call, any_of(both)?);
    }
    // Other processes' limits must not change.
    rules.insert(libc::SYS_prlimit64, vec![prlimit(&SeccompCmpOp::Ne)?]);
    deny_x32(&mut rules);
    Ok(rules)
}

/// Adds the x32 twin of each call, with any arguments.
fn deny_x32(rules: &mut Rules) {
    let calls: Vec<i64> = rules.keys().copied().collect();
    rules.extend(calls.into_iter().map(|call| any(call | X32)));
}

fn allowed(files: bool) -> Result<Rules, BackendError> {
    let files = if files { FILES } else { &[] };
    let mut rules: Rules = WORK.iter().chain(files).copied().map(any).collect();
    let thread = libc::CLONE_THREAD as u64;
    let local = (0, SeccompCmpOp::Eq, libc::AF_UNIX as u64);
    // A datagram socket could send to any address.
    let stream = (1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_STREAM as u64);
    let thread_name = (0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64);
    let own = (0, SeccompCmpOp::Eq, u64::from(std::process::id()));
    let differs = |value| (1, SeccompCmpOp::Ne, value);
    for (call, rule) in [
        (
            libc::SYS_clone,
            all_of([(0, SeccompCmpOp::MaskedEq(thread), thread)]),
        ),
        (libc::SYS_socketpair, all_of([local, stream])),
        (libc::SYS_prctl, all_of([thread_name])),
        (libc::SYS_tgkill, all_of([own])),
        (libc::SYS_prlimit64, prlimit(&SeccompCmpOp::Eq)),
        (libc::SYS_ioctl, all_of(CONTROLS.map(differs))),
        (libc::SYS_fcntl, all_of(OWNERS.map(differs))),
    ] {
        rules.insert(call, vec![rule?]);
    }
    if !files.is_empty() {
        // A null path means the open file itself; no Landlock right covers setting the times of a path.
        let null = SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
        rules.insert(libc::SYS_utimensat, vec![SeccompRule::new(vec![null])?]);
    }
    Ok(rules)
}

/// Matches a call with any arguments.
const fn any(call: i64) -> (i64, Vec<SeccompRule>) {
    (call, Vec::new())
}

/// Matches if one of the comparisons holds.
fn any_of(
    comparisons: impl IntoIterator<Item = Comparison>,
) -> Result<Vec<SeccompRule>, BackendError> {
    let each = comparisons.into_iter().map(|one| all_of([one]));
    each.collect()
}

/// Matches if all comparisons hold.
fn all_of(comparisons: impl IntoIterator<Item = Comparison>) -> Result<SeccompRule, BackendError> {
    let conditions = comparisons.into_iter().map(|(argument, operator, value)| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Compares the process ID of `prlimit64` with 0 (this process), and its pointer to new limits with null.
fn prlimit(operator: &SeccompCmpOp) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator.clone(), 0)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, operator.clone(), 0)?,
    ])
}
