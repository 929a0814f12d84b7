//! A broker on real sockets, and clients that are good or are not.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cloister_kbs::jws::Pins;
use cloister_kbs::release;
use cloister_kbs::{Tee, TeePubKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::*;
use crate::config::{Limits, PolicyFiles, StoreConfig};
use crate::key_file;
use crate::verify::Judgement;

/// Believes evidence that says `"good"`, and looks at nothing else.
struct StandIn;

impl Judge for StandIn {
    fn serves(&self, tee: Tee) -> bool {
        tee == Tee::Snp
    }

    fn judge(
        &self,
        _tee: Tee,
        evidence: Value,
        _report_data: &[u8; 64],
        _now: SystemTime,
    ) -> Result<Judgement, Problem> {
        match evidence == json!("good") {
            true => {
                let ear = token::tests::ear();
                Ok(Judgement { measurement: "aa".into(), ear, unchecked: vec!["tcb"] })
            }
            false => Err(Problem::attestation_failed(format!("bad: {evidence}"))),
        }
    }
}

/// Its listeners end with the runtime.
struct Broker {
    tcp: SocketAddr,
    unix: PathBuf,
    pins: Pins,
    _dir: tempfile::TempDir,
}

/// A broker's state, with one secret for one kind of guest.
fn state(limits: Limits) -> (State, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (key, reference) = (dir.path().join("key"), dir.path().join("reference.json"));
    key_file::create(&key, &"ab".repeat(32)).unwrap();
    std::fs::write(&reference, r#"{"tee": "snp", "measurement": "aa"}"#).unwrap();
    let store = StoreConfig { path: dir.path().join("secrets"), key_file: Some(key), key_env: None };
    Store::open(&store).unwrap().set("a/b/c", b"secret").unwrap();
    let config = Config {
        listen: Vec::new(),
        trust: Default::default(),
        policy: PolicyFiles::default(),
        reference_values: vec![reference],
        store,
        session: Default::default(),
        token: Default::default(),
        limits,
    };
    (State::with(config, Box::new(StandIn)).unwrap(), dir)
}

async fn start(limits: Limits) -> Broker {
    let (state, dir) = state(limits);
    let mut pins = Pins::default();
    pins.add_jwks(state.issuer.jwks().to_string().as_bytes()).unwrap();
    let app = router(Arc::new(state));
    let (path, tcp) = (dir.path().join("socket"), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = tcp.local_addr().unwrap();
    tokio::spawn(crate::listen::accept_tcp(tcp, limits, app.clone()));
    tokio::spawn(crate::listen::accept_unix(UnixListener::bind(&path).unwrap(), limits, app));
    Broker { tcp: address, unix: path, pins, _dir: dir }
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn cookie(&self) -> String {
        let line = self.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
        line.split(';').next().unwrap().to_owned()
    }

    fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }
}

async fn converse<S>(mut stream: S, request: &[u8]) -> Answer
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
}

fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl Broker {
    async fn ask(&self, method: &str, path: &str, headers: &[&str], body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        converse(TcpStream::connect(self.tcp).await.unwrap(), &request(method, path, headers, &body)).await
    }

    async fn auth(&self) -> (String, String) {
        let body = json!({"version": "0.4.0", "tee": "snp", "extra-params": {}});
        let answer = self.ask("POST", path::AUTH, &[], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        (answer.body["nonce"].as_str().unwrap().to_owned(), answer.cookie())
    }

    async fn attest(&self, cookie: &str, body: &Value) -> Answer {
        self.ask("POST", path::ATTEST, &[&format!("Cookie: {cookie}")], body).await
    }

    async fn fetch(&self, headers: &[&str]) -> Answer {
        self.ask("GET", "/kbs/v0/resource/a/b/c", headers, &Value::Null).await
    }

    /// From challenge to secret, over TCP.
    async fn whole(&self) {
        let (nonce, cookie) = self.auth().await;
        let key = jwe::generate().unwrap();
        let public = jwe::public_key(&key.public_key());
        let answer = self.attest(&cookie, &attestation(&nonce, &public, "good")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let token = answer.body["token"].as_str().unwrap();
        let bearer = format!("Authorization: Bearer {token}");
        let answer = self.fetch(&[&bearer, "cloister-request: r1"]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let signed: SignedResponse = serde_json::from_value(answer.body).unwrap();
        let nonce = release::eat_nonce(&nonce).unwrap();
        let binding = Binding { nonce: &nonce, key: &public, resource: "a/b/c", request: Some("r1") };
        release::check(&signed, &binding, &self.pins).unwrap();
        release::check_token(token, &nonce, &public, &self.pins).unwrap();
        assert_eq!(jwe::decrypt(&key, &signed.message).unwrap().as_slice(), b"secret");
    }
}

fn attestation(nonce: &str, key: &TeePubKey, evidence: &str) -> Value {
    json!({
        "init-data": null,
        "runtime-data": {"nonce": nonce, "tee-pubkey": key},
        "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
    })
}

fn public() -> TeePubKey {
    token::tests::guest()
}

#[tokio::test]
async fn a_guest_gets_its_secret_signed() {
    start(Limits::default()).await.whole().await;
}

#[tokio::test]
async fn a_token_alone_is_enough_and_so_is_the_cookie_that_it_came_as() {
    let broker = start(Limits::default()).await;
    let (nonce, challenge) = broker.auth().await;
    let answer = broker.attest(&challenge, &attestation(&nonce, &public(), "good")).await;
    let (token, cookie) = (answer.body["token"].as_str().unwrap().to_owned(), answer.cookie());
    assert_eq!(broker.fetch(&[&format!("Authorization: Bearer {token}")]).await.status, 200);
    assert_eq!(broker.fetch(&[&format!("Cookie: {cookie}")]).await.status, 200);
    for headers in [
        vec![],
        vec![format!("Cookie: {challenge}")],
        vec!["Authorization: Bearer x".to_owned()],
        // A bad token is not made good by a good cookie.
        vec!["Authorization: Bearer x".to_owned(), format!("Cookie: {cookie}")],
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        assert_eq!(broker.fetch(&headers).await.status, 401, "{headers:?}");
    }
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(broker.fetch(&[&bearer, "cloister-request: a b"]).await.status, 400);
    let other = broker.ask("GET", "/kbs/v0/resource/a/b/none", &[&bearer], &Value::Null).await;
    assert_eq!((other.status, other.detail()), (401, "the release policy does not allow this"));
}

#[tokio::test]
async fn a_nonce_is_good_for_one_attestation_and_a_bad_one_does_not_spend_it() {
    let broker = start(Limits::default()).await;
    let (nonce, cookie) = broker.auth().await;
    let (other, _) = broker.auth().await;
    let key = public();
    for (body, words) in
        [(attestation(&nonce, &key, "bad"), "bad"), (attestation(&other, &key, "good"), "nonce-mismatch")]
    {
        let answer = broker.attest(&cookie, &body).await;
        assert!(answer.status == 401 && answer.detail().contains(words), "{}", answer.body);
    }
    assert_eq!(broker.attest(&cookie, &attestation(&nonce, &key, "good")).await.status, 200);
    let again = broker.attest(&cookie, &attestation(&nonce, &key, "good")).await;
    assert_eq!((again.status, again.detail()), (401, "the nonce was used"));
    let made_up = format!("{COOKIE}={}", BASE64_STANDARD.encode([0; 74]));
    assert_eq!(broker.attest(&made_up, &attestation(&nonce, &key, "good")).await.status, 401);
}

#[tokio::test]
async fn what_is_not_verified_is_refused_and_not_ignored() {
    let broker = start(Limits::default()).await;
    let (nonce, cookie) = broker.auth().await;
    type Change = (fn(&mut Value), &'static str);
    let changes: [Change; 6] = [
        (|b| b["init-data"] = json!({"format": "toml", "body": "x"}), "init-data"),
        (|b| b["tee-evidence"]["additional_evidence"] = json!("{\"nvidia\":[]}"), "additional_evidence"),
        (|b| b["tee-evidence"]["additional-evidence"] = json!("x"), "unknown field"),
        (|b| b["init_data"] = json!({"format": "toml", "body": "x"}), "unknown field"),
        (|b| b["runtime-data"]["extra"] = json!(1), "unknown field"),
        (|b| b["more"] = json!(1), "unknown field"),
    ];
    for (change, words) in changes {
        let mut body = attestation(&nonce, &public(), "good");
        change(&mut body);
        let answer = broker.attest(&cookie, &body).await;
        assert!(answer.status == 400 && answer.detail().contains(words), "{body}: {}", answer.body);
    }
    let mut without = attestation(&nonce, &public(), "good");
    without["tee-evidence"].as_object_mut().unwrap().remove("additional_evidence");
    assert_eq!(broker.attest(&cookie, &without).await.status, 200);
    for (algorithms, status) in
        [(json!(["sha256"]), 401), (json!(["sha256", "sha384"]), 200), (json!([]), 200)]
    {
        let body = json!({"version": "0.4.0", "tee": "snp", "extra-params": {"supported-hash-algorithms": algorithms}});
        assert_eq!(broker.ask("POST", path::AUTH, &[], &body).await.status, status, "{algorithms}");
    }
    let other = json!({"version": "0.4.0", "tee": "tdx", "extra-params": {}});
    let answer = broker.ask("POST", path::AUTH, &[], &other).await;
    assert!(answer.status == 401 && answer.detail().ends_with("verifies snp"), "{}", answer.body);
}

/// What is logged, line by line.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_log_names_who_got_what_and_nobody_writes_lines_into_it() {
    let (state, _dir) = state(Limits::default());
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    let peer = Peer::new("10.0.0.7:1".into());
    tracing::subscriber::with_default(subscriber, || {
        let now = seconds(SystemTime::now()).unwrap();
        let (challenge, cookie) = state.sealer.begin(Tee::Snp, now).unwrap();
        let body =
            |evidence: &str| Bytes::from(attestation(&challenge.text(), &public(), evidence).to_string());
        let forged = "x\n{\"fields\":{\"message\":\"released\"}}\u{1b}[2J";
        judge(&state, &cookie, &body(forged), &peer).unwrap_err();
        let token = judge(&state, &cookie, &body("good"), &peer).unwrap();
        let name = ("a".to_owned(), "b".to_owned(), "c".to_owned());
        release(&state, &token, &name, None, &peer).unwrap();
    });
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains('\u{1b}'), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fields: Vec<&Value> = lines.iter().map(|line| &line["fields"]).collect();
    let messages: Vec<&str> = fields.iter().map(|fields| fields["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["attestation refused", "attested", "released"]);
    for fields in &fields {
        assert_eq!((&fields["peer"], fields["session"].as_str().unwrap().len()), (&json!("10.0.0.7:1"), 16));
        assert_eq!(fields["session"], lines[0]["fields"]["session"], "one session");
    }
    assert_eq!(fields[1]["unchecked"], "tcb");
    for (name, value) in [("resource", "a/b/c"), ("measurement", "aa"), ("platform", "c1"), ("tee", "snp")] {
        assert_eq!(fields[2][name], value, "{name}");
    }
}

#[tokio::test]
async fn thousands_of_challenges_that_nobody_answers_cost_nothing() {
    let broker = start(Limits::default()).await;
    let (nonce, cookie) = broker.auth().await;
    for _ in 0..2000 {
        broker.auth().await;
    }
    // The first is as good as ever, and so is a new one.
    assert_eq!(broker.attest(&cookie, &attestation(&nonce, &public(), "good")).await.status, 200);
    broker.whole().await;
}

fn short() -> Limits {
    Limits { head_ms: 200, body_ms: 200, ..Limits::default() }
}

/// What the broker closes without being asked anything more.
async fn is_closed<S: tokio::io::AsyncRead + Unpin>(mut stream: S) -> String {
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = stream.read_to_end(&mut rest).await;
    String::from_utf8_lossy(&rest).into_owned()
}

#[tokio::test]
async fn half_open_connections_hinder_neither_another_listener_nor_a_good_client() {
    // They time out late: what helps is that they make room.
    let broker = start(Limits { head_ms: 600_000, ..Limits::default() }).await;
    let mut open = Vec::new();
    for at in 0..1500 {
        let mut stream = TcpStream::connect(broker.tcp).await.unwrap();
        let half: &[u8] = if at % 2 == 0 { b"" } else { b"POST /kbs/v0/auth HTTP/1.1\r\nHost:" };
        // The broker may have closed it already.
        let _ = stream.write_all(half).await;
        open.push(stream);
    }
    broker.whole().await;
    let jwks = request("GET", token::JWKS, &[], "");
    for _ in 0..300 {
        open.push(TcpStream::connect(broker.tcp).await.unwrap());
        let unix = UnixStream::connect(&broker.unix).await.unwrap();
        assert_eq!(converse(unix, &jwks).await.status, 200);
    }
    let mut half = Vec::new();
    for _ in 0..1500 {
        half.push(UnixStream::connect(&broker.unix).await.unwrap());
    }
    assert_eq!(converse(UnixStream::connect(&broker.unix).await.unwrap(), &jwks).await.status, 200);
    broker.whole().await;
}

#[tokio::test]
async fn slow_and_idle_clients_are_closed() {
    let broker = start(short()).await;
    let jwks = format!("GET {} HTTP/1.1\r\nHost: b\r\n\r\n", token::JWKS);
    let half_body = "POST /kbs/v0/auth HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\n{";
    for (what, text, answer) in [
        ("nothing", "", ""),
        ("half a head", "POST /kbs/v0/auth HTTP/1.1\r\nHost", ""),
        ("half a body", half_body, "408"),
        ("idle after an answer", &jwks, "200"),
    ] {
        let mut tcp = TcpStream::connect(broker.tcp).await.unwrap();
        tcp.write_all(text.as_bytes()).await.unwrap();
        let seen = is_closed(tcp).await;
        assert!(seen.contains(answer), "{what}: {seen}");
        let mut unix = UnixStream::connect(&broker.unix).await.unwrap();
        unix.write_all(text.as_bytes()).await.unwrap();
        let seen = is_closed(unix).await;
        assert!(seen.contains(answer), "{what}: {seen}");
    }
    broker.whole().await;
}

#[tokio::test]
async fn a_connection_ends_however_busy_it_is_kept() {
    let broker = start(Limits { connection_ms: 300, ..Limits::default() }).await;
    let mut stream = TcpStream::connect(broker.tcp).await.unwrap();
    let jwks = format!("GET {} HTTP/1.1\r\nHost: b\r\n\r\n", token::JWKS);
    let mut buffer = [0; 4096];
    loop {
        if stream.write_all(jwks.as_bytes()).await.is_err() {
            break;
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    broker.whole().await;
}

#[tokio::test]
async fn too_long_a_body_or_head_is_refused() {
    let broker = start(Limits::default()).await;
    let body = "x".repeat(MAX_BODY + 1);
    let answer = converse(
        TcpStream::connect(broker.tcp).await.unwrap(),
        format!("POST {} HTTP/1.1\r\nHost: b\r\nContent-Length: {}\r\n\r\n", path::AUTH, body.len())
            .as_bytes(),
    )
    .await;
    assert_eq!(answer.status, 413);
    let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", token::JWKS, "y".repeat(100_000));
    let mut stream = TcpStream::connect(broker.tcp).await.unwrap();
    // It may be closed before all of it is written.
    let _ = stream.write_all(head.as_bytes()).await;
    let seen = is_closed(stream).await;
    assert!(seen.is_empty() || seen.contains("431"), "{seen}");
}
