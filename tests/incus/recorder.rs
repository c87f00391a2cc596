//! A socket between anklume and Incus that records every request, and can drop, answer or change the traffic.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The socket of the real Incus.
const INCUS: &str = "/var/lib/incus/unix.socket";

/// The fate of a request.
pub(crate) enum Fate {
    /// It reaches Incus, and the answer comes back.
    Pass,
    /// It reaches Incus, but the answer is dropped and the connection is closed.
    Lose,
    /// It never reaches Incus; this is the answer.
    Answer(u16, String),
}

/// Decides a request's fate, given its number (from 1 for write requests, 0 for others), method and path.
pub(crate) type Judge = dyn Fn(usize, &str) -> Fate + Send + Sync;

/// The recording socket.
pub(crate) struct Recorder {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Requests>>,
}

/// The requests so far, as `METHOD PATH`.
#[derive(Default)]
struct Requests {
    writes: Vec<String>,
    reads: Vec<String>,
}

impl Recorder {
    /// Listens, and passes each request to `judge`.
    pub(crate) fn new(judge: impl Fn(usize, &str) -> Fate + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let requests = Arc::new(Mutex::new(Requests::default()));
        let judge: Arc<Judge> = Arc::new(judge);
        let shared = Arc::clone(&requests);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (judge, requests) = (Arc::clone(&judge), Arc::clone(&shared));
                let client = client.unwrap();
                // Ignore the result: many tests break connections on purpose.
                std::thread::spawn(move || serve(client, &judge, &requests));
            }
        });
        Self { folder, requests }
    }

    /// The path of the socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The requests so far that may change something, as `METHOD PATH`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.requests.lock().unwrap().writes.clone()
    }

    /// The other requests so far.
    pub(crate) fn reads(&self) -> Vec<String> {
        self.requests.lock().unwrap().reads.clone()
    }
}

/// A message: its first line, its other header lines, and its body.
struct Message {
    first: String,
    head: String,
    body: Vec<u8>,
}

fn read(stream: &mut BufReader<UnixStream>, has_body: bool) -> Option<Message> {
    let mut head = String::new();
    let mut length = Some(0);
    let mut first = String::new();
    stream
        .read_line(&mut first)
        .ok()
        .filter(|count| *count > 0)?;
    loop {
        let mut line = String::new();
        stream
            .read_line(&mut line)
            .ok()
            .filter(|count| *count > 0)?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = Some(value.trim().parse().unwrap());
        }
        if lower.starts_with("transfer-encoding:") {
            length = None;
        }
        head.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = Vec::new();
    match length {
        Some(length) if has_body => {
            body = vec![0; length];
            stream.read_exact(&mut body).ok()?;
        }
        None if has_body => read_chunks(stream, &mut body)?,
        _ => {}
    }
    Some(Message { first, head, body })
}

/// Reads a chunked body in its raw form.
fn read_chunks(stream: &mut BufReader<UnixStream>, body: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        body.extend_from_slice(line.as_bytes());
        let size = u64::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = Vec::new();
        stream
            .by_ref()
            .take(size + 2)
            .read_to_end(&mut chunk)
            .ok()?;
        body.extend_from_slice(&chunk);
        if size == 0 {
            return Some(());
        }
    }
}

fn send(stream: &mut UnixStream, message: &Message) -> Option<()> {
    let head = format!("{}{}", message.first, message.head);
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&message.body).ok()
}

/// Copies bytes until the stream ends.
fn copy(from: &mut BufReader<UnixStream>, to: &mut UnixStream) -> Option<()> {
    let _ = std::io::copy(from, to);
    to.shutdown(std::net::Shutdown::Write).ok()
}

fn serve(client: UnixStream, judge: &Arc<Judge>, requests: &Mutex<Requests>) -> Option<()> {
    // A killed Incus accepts no connections.
    let upstream = UnixStream::connect(Path::new(INCUS)).ok()?;
    let mut to_client = client.try_clone().unwrap();
    let mut to_incus = upstream.try_clone().unwrap();
    let mut client = BufReader::new(client);
    let mut upstream = BufReader::new(upstream);
    loop {
        let request = read(&mut client, true)?;
        let line = request
            .first
            .trim()
            .trim_end_matches(" HTTP/1.1")
            .to_owned();
        let writing = !line.starts_with("GET ") && !line.starts_with("HEAD ");
        let number = {
            let mut requests = requests.lock().unwrap();
            if writing {
                requests.writes.push(line.clone());
                requests.writes.len()
            } else {
                requests.reads.push(line.clone());
                0
            }
        };
        match judge(number, &line) {
            Fate::Pass => {
                send(&mut to_incus, &request)?;
                let answer = read(&mut upstream, !line.starts_with("HEAD "))?;
                send(&mut to_client, &answer)?;
                if answer.first.contains(" 101 ") {
                    // The stream of a program in a machine: only raw bytes follow.
                    std::thread::spawn(move || copy(&mut client, &mut to_incus));
                    return copy(&mut upstream, &mut to_client);
                }
            }
            Fate::Lose => {
                send(&mut to_incus, &request)?;
                // Incus drops a request whose sender disconnects, so wait for the answer.
                read(&mut upstream, true)?;
                return None;
            }
            Fate::Answer(code, body) => {
                let head = format!(
                    "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                to_client.write_all(head.as_bytes()).ok()?;
            }
        }
    }
}
