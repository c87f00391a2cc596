//! `anklume-gpg`: this program under another name, as git's `gpg.program`. Signs over a channel; everything else, such as
//! verifying, is done by the gpg of this machine.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;

use super::output::Output;
use super::service::NamedService;
use super::sign::{self, PublicKey, SIGN, with_signer};
use crate::error::{Exit, Failure};
use crate::mcp::client::pieces::PayloadSource;
use crate::transport;

/// The name of the program.
pub(super) const NAME: &str = "anklume-gpg";
/// The key of git's configuration that names the service that signs.
const CONFIG: &str = "anklume.sign";
/// Shortest key ID, in hexadecimal digits.
const ID_MIN: usize = 8;

/// What git asks for.
#[derive(Debug, PartialEq, Eq)]
enum GitRequest {
    /// A detached, armored signature of stdin.
    Sign {
        /// The key as git names it.
        key: String,
        /// The descriptor for status lines.
        status: i32,
    },
    /// Anything else.
    Other,
}

/// Runs `anklume-gpg`.
pub(super) fn run(args: &[OsString], output: &Output) -> anyhow::Result<Exit> {
    match request(args)? {
        GitRequest::Sign { key, status } => sign(&key, status, output),
        GitRequest::Other => local(args),
    }
}

/// Reads git's arguments: `--status-fd=2 -bsau KEY` to sign.
fn request(args: &[OsString]) -> Result<GitRequest, Failure> {
    let unknown = |arg: &str| {
        let message = format!(
            "`{}` is not an option that git signs with",
            arg.escape_debug()
        );
        Failure::new(Exit::Usage, message).help(format!(
            "{NAME} signs only as git asks: `--status-fd=2 -bsau KEY`"
        ))
    };
    let args: Vec<&str> = args
        .iter()
        .map(|arg| arg.to_str().unwrap_or("\u{fffd}"))
        .collect();
    let short = |arg: &&str| arg.starts_with('-') && !arg.starts_with("--") && arg.len() > 1;
    let signs = |arg: &&str| {
        ["--detach-sign", "--sign", "--clearsign", "--clear-sign"].contains(arg)
            || short(arg) && arg.contains(['s', 'b'])
    };
    if !args.iter().any(signs) {
        return Ok(GitRequest::Other);
    }
    let (mut key, mut status) = (None, 2);
    let mut rest = args.iter().copied();
    while let Some(arg) = rest.next() {
        if let Some(number) = arg.strip_prefix("--status-fd=") {
            status = number.parse().map_err(|_| unknown(arg))?;
        } else if arg == "--status-fd" {
            let number = rest.next().and_then(|number| number.parse().ok());
            status = number.ok_or_else(|| unknown(arg))?;
        } else if arg == "--local-user" {
            key = rest.next();
        } else if short(&arg) {
            let letters = arg.trim_start_matches('-');
            if letters.chars().any(|letter| !"bsau".contains(letter)) {
                return Err(unknown(arg));
            }
            if letters.contains('u') {
                key = rest.next();
            }
        } else if !["--detach-sign", "--sign", "--armor", "--batch"].contains(&arg) {
            return Err(unknown(arg));
        }
    }
    let key = key.ok_or_else(|| unknown("a missing `-u KEY`"))?;
    Ok(GitRequest::Sign {
        key: key.to_owned(),
        status,
    })
}

fn sign(key: &str, status: i32, output: &Output) -> anyhow::Result<Exit> {
    // Git passes no flags of ours on.
    let name = named()?.named_by("`git config anklume.sign PROVIDER/SERVICE`");
    with_signer(&name, output, async |server, service| {
        let public = sign::public_key(server, service).await?;
        if !is_key(key, &public) {
            return Err(other_key(key, &public).into());
        }
        let source = PayloadSource::new(io::stdin());
        let signature = sign::sign(server, service, source, &mut |_, _| ()).await?;
        // The provider chose its key again, and may have chosen another one since.
        let fingerprint = signature.fingerprint.to_ascii_uppercase();
        let is_listed = public.fingerprints.contains(&fingerprint);
        let signed = PublicKey {
            fingerprints: vec![fingerprint],
            ..public
        };
        if !is_listed || key.ends_with('!') && !is_key(key, &signed) {
            return Err(other_key(key, &signed).into());
        }
        // Git looks for this line after another one.
        let at = signature.time.parse::<jiff::Timestamp>();
        let at = at.map_or(0, jiff::Timestamp::as_second);
        let (key, digest) = algorithms(&signature.algorithm);
        let lines = format!(
            "[GNUPG:] BEGIN_SIGNING H{digest}\n[GNUPG:] SIG_CREATED D {key} {digest} 00 {at} {}\n",
            signature.fingerprint
        );
        tell(status, &lines)?;
        output.answer(signature.armored.as_bytes())?;
        Ok(Exit::Done)
    })
}

/// Writes status lines to a descriptor that git opened.
fn tell(status: i32, lines: &str) -> io::Result<()> {
    match status {
        1 => io::stdout().write_all(lines.as_bytes()),
        2 => io::stderr().write_all(lines.as_bytes()),
        other => {
            let path = format!("/proc/self/fd/{other}");
            std::fs::OpenOptions::new()
                .write(true)
                .open(path)?
                .write_all(lines.as_bytes())
        }
    }
}

/// The numbers of the key's and the digest's algorithm (RFC 9580, sections 9.1 and 9.5); 0 for one that is not known.
fn algorithms(name: &str) -> (u8, u8) {
    let (key, digest) = name.split_once(" with ").unwrap_or((name, ""));
    let key = match key {
        "RSA" => 1,
        "DSA" => 17,
        "ECDSA" => 19,
        "EdDSA" => 22,
        "Ed25519" => 27,
        "Ed448" => 28,
        _ => 0,
    };
    let digest = match digest {
        "SHA1" => 2,
        "RIPEMD160" => 3,
        "SHA256" => 8,
        "SHA384" => 9,
        "SHA512" => 10,
        "SHA224" => 11,
        "SHA3-256" => 12,
        "SHA3-512" => 14,
        _ => 0,
    };
    (key, digest)
}

/// The service that signs: of the environment, or of git's configuration.
fn named() -> Result<NamedService, Failure> {
    if let Ok(named) = std::env::var(SIGN)
        && !named.is_empty()
    {
        return NamedService::parse(&named);
    }
    let Ok(mut git) = transport::program("git") else {
        return Ok(NamedService::default());
    };
    // Git itself passes the folder of the repository on.
    git.args(["config", "--get", CONFIG])
        .envs(std::env::vars_os());
    let configured = git.as_std_mut().output();
    let configured = configured.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    NamedService::parse(configured.unwrap_or_default().trim())
}

/// Returns whether git's name for the key means this one: an ID or fingerprint, a user ID, or its name or address.
fn is_key(key: &str, public: &PublicKey) -> bool {
    let id = key.strip_prefix("0x").unwrap_or(key);
    let id = id.strip_suffix('!').unwrap_or(id);
    if id.len() >= ID_MIN && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let id = id.to_ascii_uppercase();
        return public.fingerprints.iter().any(|one| one.ends_with(&id));
    }
    // A user ID may be an address alone.
    let is_address = |text: &str| text.contains('@') && !text.contains([' ', '<', '>']);
    let parts = |text: &str| match text.rsplit_once('<') {
        Some((name, rest)) => (
            name.trim().to_owned(),
            rest.strip_suffix('>').map(str::to_ascii_lowercase),
        ),
        None if is_address(text) => (String::new(), Some(text.to_ascii_lowercase())),
        None => (text.to_owned(), None),
    };
    let (wanted_name, wanted_address) = parts(key);
    public.user_ids.iter().any(|user| {
        let (name, address) = parts(user);
        match (&wanted_address, address) {
            (Some(wanted), Some(address)) => *wanted == address,
            (None, _) => !wanted_name.is_empty() && wanted_name == name,
            (Some(_), None) => false,
        }
    })
}

fn other_key(key: &str, public: &PublicKey) -> Failure {
    let users: Vec<String> = public
        .user_ids
        .iter()
        .map(|user| format!("`{}`", user.escape_debug()))
        .collect();
    let first = public.fingerprints.first().map_or("", String::as_str);
    let message = format!(
        "the service signs with the key {}, of {}, which is not `{}`",
        first.escape_debug(),
        users.join(", "),
        key.escape_debug()
    );
    Failure::new(Exit::Failed, message).help(format!(
        "nothing was signed; to use that key: `git config user.signingkey {}`",
        first.escape_debug()
    ))
}

/// Runs the gpg of this machine in place of this program.
fn local(args: &[OsString]) -> anyhow::Result<Exit> {
    let missing = |why: io::Error| {
        let failure = Failure::new(
            Exit::Failed,
            format!("the gpg of this machine cannot be run: {why}"),
        );
        failure.help("to verify signatures, install it (Debian: `apt install gnupg`)")
    };
    let mut gpg = transport::program("gpg").map_err(missing)?;
    gpg.args(args).envs(std::env::vars_os());
    Err(missing(gpg.as_std_mut().exec()).into())
}

/// Shows a failure on the terminal as well, if Git keeps what this program writes to itself, as 2.39 does.
pub(super) fn tell_terminal(why: &anyhow::Error) {
    if io::stderr().is_terminal() || git_tells() {
        return;
    }
    let Ok(mut terminal) = std::fs::OpenOptions::new().write(true).open("/dev/tty") else {
        return;
    };
    let help = why
        .downcast_ref::<Failure>()
        .and_then(|failure| failure.help.as_ref());
    let help = help.map_or_else(String::new, |help| format!("\n{NAME}: help: {help}"));
    // Nobody else can be told.
    let _ = writeln!(terminal, "{NAME}: error: {why:#}{help}");
}

/// Returns whether this machine's Git shows what its gpg wrote when signing failed; seen with 2.47, the first one tested.
fn git_tells() -> bool {
    let Ok(mut git) = transport::program("git") else {
        return false;
    };
    let output = git.arg("--version").as_std_mut().output();
    let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let output = output.unwrap_or_default();
    let version = output.split_whitespace().nth(2).unwrap_or_default();
    let mut numbers = version
        .split('.')
        .map(|number| number.parse().unwrap_or(0_u32));
    (numbers.next(), numbers.next()) >= (Some(2), Some(47))
}

/// Returns whether this program was called by that name.
pub(super) fn is_called(program: Option<&OsString>) -> bool {
    let name = program
        .map(std::path::Path::new)
        .and_then(std::path::Path::file_name);
    name == Some(OsStr::new(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<GitRequest, String> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        request(&args).map_err(|failure| failure.message)
    }

    #[test]
    fn git_signs_with_few_options_and_others_are_refused() {
        let signs = |key: &str, status| {
            Ok(GitRequest::Sign {
                key: key.to_owned(),
                status,
            })
        };
        assert_eq!(of("--status-fd=2 -bsau ABCD"), signs("ABCD", 2));
        assert_eq!(of("--status-fd 3 -b -s -a -u ABCD"), signs("ABCD", 3));
        assert_eq!(of("--detach-sign --armor --local-user x"), signs("x", 2));
        for other in [
            "--keyid-format=long --status-fd=1 --verify /tmp/x -",
            "--version",
            "--list-keys",
        ] {
            assert_eq!(of(other), Ok(GitRequest::Other), "{other}");
        }
        for refused in [
            "-bsaue x",
            "-bsau",
            "--status-fd=x -bsau k",
            "-bsau k --output /etc/x",
            "--clearsign -u k",
        ] {
            assert!(of(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_key_is_known_by_the_end_of_its_fingerprint_or_by_its_user() {
        let public = PublicKey {
            fingerprints: vec![
                "0123456789ABCDEF0123456789ABCDEF01234567".to_owned(),
                "AA00".repeat(10),
            ],
            user_ids: vec![
                "Demo Person <demo@example.org>".to_owned(),
                "Second@Example.org".to_owned(),
            ],
            armored: String::new(),
        };
        for known in [
            "01234567",
            "0xabcdef0123456789abcdef01234567!",
            "AA00AA00AA00AA00",
            "Demo Person <demo@example.org>",
            "Other Name <DEMO@example.org>",
            "demo@example.org",
            "Demo Person",
            "Demo Person <second@example.org>",
            "second@example.org",
        ] {
            assert!(is_key(known, &public), "{known}");
        }
        for other in [
            "1234567",
            "89ABCDEF",
            "",
            "demo",
            "<demo@example.com>",
            "example.org",
            "<>",
            "Demo",
        ] {
            assert!(!is_key(other, &public), "{other}");
        }
    }
}
