//! The system calls that a process of the server may make. Of the rest each fails with "Operation not permitted".

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// The system calls that a process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AllowedCalls {
    /// Those of the server, and with it of all that it starts: whatever does not change the system, nor leaves the machine.
    Server,
    /// Those of a process that runs gpg, or speaks to a display: the server's.
    Programs,
    /// Those of a process that speaks over the sockets that it was given: it opens none, and starts nothing.
    Worker {
        /// True if it opens files.
        files: bool,
    },
}

/// System calls that a machine is administered with, or that reach into other processes. The first part is what Docker's and
/// systemd's default filters leave out as well (`systemd-analyze syscall-filter`: @clock, @module, @mount, @raw-io, @reboot,
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
    // The keyrings of the kernel.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // It makes system calls that no filter sees.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
];

/// System calls on the sockets, threads and memory of a process.
const WORK: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    // The other filter answers it.
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
    // To itself: it cannot name another process's threads.
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// System calls on files; Landlock limits the files.
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

/// Changes to files that Landlock has no right for, so that it cannot keep them to some: of whatever has a path, or may be read.
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
    // What it opens for, is behind a pointer.
    libc::SYS_openat2,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    libc::SYS_truncate,
    libc::SYS_utime,
    libc::SYS_utimensat,
    libc::SYS_utimes,
];
/// What reaches other processes of the same user, for which Landlock has no rule: their priorities, and what they share.
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
/// System calls that are newer than this program, from `setxattrat` on: some change files by their paths. Those beyond are the
/// other ABI's.
const NEWER: std::ops::Range<i64> = 463..512;
/// Commands of `fcntl` by which a file sends its owner's process signals (`F_SETOWN`, `F_SETSIG`, `F_SETOWN_EX`): any process.
const OWNERS: [u64; 3] = [8, 10, 15];
/// The same by `ioctl` (`FIOSETOWN`, `SIOCSPGRP`), and typing on the terminal of whoever started the server.
const CONTROLS: [u64; 3] = [0x8901, 0x8902, libc::TIOCSTI];
/// `clone` with one of these begins a namespace (`clone(2)`).
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;
/// A system call of the x32 ABI has this bit and the same architecture (`seccomp(2)`); no program of ours makes one.
const X32: i64 = 0x4000_0000;

/// Rules for each system call; none: whatever its arguments are.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Installs the filter for this thread and those that it starts.
///
/// # Errors
///
/// The kernel has no filters, or does not let this process have one.
pub(super) fn install(calls: AllowedCalls, network: bool) -> Result<(), seccompiler::Error> {
    // Its flags are behind a pointer, which no filter follows; the C library then makes a thread by `clone`.
    let unknown = Rules::from([(libc::SYS_clone3, Vec::new())]);
    apply(
        unknown,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    )?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    match calls {
        AllowedCalls::Server => apply(refused(network)?, SeccompAction::Allow, refuse),
        AllowedCalls::Programs => {
            let mut rules = refused(network)?;
            add(&mut rules, UNRULED);
            add(&mut rules, OTHERS);
            rules.extend(NEWER.map(|call| (call, Vec::new())));
            // A file that may only be read could be emptied, and one that may not be opened at all has a descriptor all the
            // same where it is asked for neither reading nor writing: access mode 3 (`open(2)`).
            let mask = u64::from((libc::O_ACCMODE | libc::O_TRUNC).unsigned_abs());
            let empties = u64::from((libc::O_RDONLY | libc::O_TRUNC).unsigned_abs());
            let neither = u64::from(libc::O_ACCMODE.unsigned_abs());
            for (call, argument) in [(libc::SYS_open, 1), (libc::SYS_openat, 2)] {
                let empties = condition(argument, SeccompCmpOp::MaskedEq(mask), empties)?;
                let neither = condition(argument, SeccompCmpOp::MaskedEq(neither), neither)?;
                let both = [empties, neither].map(|one| SeccompRule::new(vec![one]));
                rules.insert(call, both.into_iter().collect::<Result<_, _>>()?);
            }
            // The limits of other processes.
            let other = condition(0, SeccompCmpOp::Ne, 0)?;
            let new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
            rules.insert(
                libc::SYS_prlimit64,
                vec![SeccompRule::new(vec![other, new])?],
            );
            twins(&mut rules);
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

/// Builds the deny list for every process of the server.
fn refused(network: bool) -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = ADMINISTRATION
        .iter()
        .map(|call| (*call, Vec::new()))
        .collect();
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
    let allowed = families.iter().take(if network { 3 } else { 1 });
    let other =
        allowed.map(|family| condition(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs())));
    let other = SeccompRule::new(other.collect::<Result<_, _>>()?)?;
    rules.insert(libc::SYS_socket, vec![other]);
    let each = (0..u64::BITS).map(|bit| 1 << bit);
    let namespaces = each.filter(|flag| NAMESPACES & flag != 0).map(|flag| {
        let begins = condition(0, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![begins])
    });
    let namespaces: Result<_, _> = namespaces.collect();
    rules.insert(libc::SYS_clone, namespaces?);
    rules.insert(libc::SYS_ioctl, one_of(1, &CONTROLS)?);
    rules.insert(libc::SYS_fcntl, one_of(1, &OWNERS)?);
    twins(&mut rules);
    // `ptrace` and the memory of other processes have numbers of their own there.
    rules.extend([521, 539, 540].map(|call| (call | X32, Vec::new())));
    Ok(rules)
}

/// Adds each call of the other ABI, whatever its arguments are.
fn twins(rules: &mut Rules) {
    let calls: Vec<i64> = rules.keys().copied().collect();
    rules.extend(calls.into_iter().map(|call| (call | X32, Vec::new())));
}

/// Builds the allow list of a worker.
fn allowed(files: bool) -> Result<Rules, seccompiler::Error> {
    let files = if files { FILES } else { &[] };
    let all = WORK.iter().chain(files);
    let mut rules: Rules = all.map(|call| (*call, Vec::new())).collect();
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let threads = condition(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![threads])?]);
    let local = u64::from(libc::AF_UNIX.unsigned_abs());
    // One for datagrams could send to any address.
    let stream = u64::from(libc::SOCK_STREAM.unsigned_abs());
    let pair = vec![
        condition(0, SeccompCmpOp::Eq, local)?,
        condition(1, SeccompCmpOp::MaskedEq(0xf), stream)?,
    ];
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(pair)?]);
    // The name of a thread.
    let name = u64::from(libc::PR_SET_NAME.unsigned_abs());
    let named = condition(0, SeccompCmpOp::Eq, name)?;
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(vec![named])?]);
    let own = u64::from(std::process::id());
    let itself = condition(0, SeccompCmpOp::Eq, own)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![itself])?]);
    let asked = condition(0, SeccompCmpOp::Eq, 0)?;
    let nothing_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(
        libc::SYS_prlimit64,
        vec![SeccompRule::new(vec![asked, nothing_new])?],
    );
    rules.insert(libc::SYS_ioctl, vec![none_of(1, &CONTROLS)?]);
    rules.insert(libc::SYS_fcntl, vec![none_of(1, &OWNERS)?]);
    Ok(rules)
}

/// Adds calls, whatever their arguments are.
fn add(rules: &mut Rules, calls: &[i64]) {
    rules.extend(calls.iter().map(|call| (*call, Vec::new())));
}

/// The argument has one of these values.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let each = values
        .iter()
        .map(|value| SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, *value)?]));
    each.collect()
}

/// The argument has none of these values.
fn none_of(argument: u8, values: &[u64]) -> Result<SeccompRule, seccompiler::BackendError> {
    let each = values
        .iter()
        .map(|value| condition(argument, SeccompCmpOp::Ne, *value));
    SeccompRule::new(each.collect::<Result<_, _>>()?)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}
