//! Request smuggling in HTTP/1 (RFC 9112 §11.2): whatever a client sends, the application reads the very requests that
//! the lane judged, or none.
//!
//! Each vector goes to a Service with a route, where both nodes read it, and to the pod itself, where the server's node
//! alone does; each as the first request of its connection, and after another that both could read.

use std::net::SocketAddr;

use proptest::prelude::prop_assert;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http::{no_admin, routed};
use super::recorder::{AMBIGUOUS, heard, record};
use super::rig::{Mesh, Pod, soon};
use crate::fuzz_tests::fuzz_bytes;

/// What is sent, which requests the application must see, and which statuses the client.
type Vector = (&'static str, &'static str, &'static [&'static str], &'static [u16]);

const REFUSED: &[u16] = &[400];
const FINE: &[u16] = &[200];

/// `/admin` is what no client should get past the rule by the side of another request.
const LENGTHS: &[Vector] = &[
    (
        "Content-Length before Transfer-Encoding",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "Transfer-Encoding before Content-Length",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
         1f\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "both, with lines ended by LF alone",
        "POST /a HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nContent-Length: 3\n\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("an equal length twice", "POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", &[], REFUSED),
    ("two lengths", "POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc", &[], REFUSED),
    ("two lengths, 0 first", "POST /a HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 3\r\n\r\nabc", &[], REFUSED),
    ("a list of lengths", "POST /a HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc", &[], REFUSED),
    ("a length with a sign", "POST /a HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", &[], REFUSED),
    ("a negative length", "POST /a HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc", &[], REFUSED),
    ("a hexadecimal length", "POST /a HTTP/1.1\r\nContent-Length: 0x3\r\n\r\nabc", &[], REFUSED),
    ("no length", "POST /a HTTP/1.1\r\nContent-Length:\r\n\r\nabc", &[], REFUSED),
    ("a length of 65 bits", "POST /a HTTP/1.1\r\nContent-Length: 18446744073709551619\r\n\r\nabc", &[], REFUSED),
    ("a length and a vertical tab", "POST /a HTTP/1.1\r\nContent-Length: 3\x0b\r\n\r\nabc", &[], REFUSED),
    ("a length with a space inside", "POST /a HTTP/1.1\r\nContent-Length: 3 0\r\n\r\nabc", &[], REFUSED),
    ("a length with spaces around", "POST /a HTTP/1.1\r\nContent-Length: \t3 \r\n\r\nabc", &["POST /a abc"], FINE),
    ("a length that does not fit", "POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", &[], REFUSED),
    (
        "a length named as a hop's own",
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\nConnection: content-length\r\n\r\nabc",
        &["POST /a abc"],
        FINE,
    ),
    (
        "a coding named so",
        "POST /a HTTP/1.1\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &["POST /a abc"],
        FINE,
    ),
    ("a body on GET", "GET /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", &["GET /a abc"], FINE),
    (
        "a body on GET in chunks",
        "GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &["GET /a abc"],
        FINE,
    ),
    ("a body on HEAD", "HEAD /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", &["HEAD /a abc"], FINE),
    ("a body on DELETE", "DELETE /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", &["DELETE /a abc"], FINE),
    ("a body on OPTIONS *", "OPTIONS * HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", &["OPTIONS * abc"], FINE),
    ("a body on CONNECT", "CONNECT a:80 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", &["CONNECT a:80 abc"], &[405]),
    (
        "a body on a wish to switch",
        "POST /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
        &["POST /a abc"],
        FINE,
    ),
    (
        "requests one behind another",
        "GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /c HTTP/1.1\r\n\r\n",
        &["GET /a ", "POST /b abc", "GET /c "],
        &[200, 200, 200],
    ),
    (
        "a denied one behind another",
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /admin HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n",
        &["POST /a abc", "GET /c "],
        &[200, 403, 200],
    ),
    (
        "an empty line between two",
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\r\nGET /b HTTP/1.1\r\n\r\n",
        &["POST /a abc", "GET /b "],
        &[200, 200],
    ),
    (
        "a length that is an ambiguous head's",
        "GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &["GET /a "],
        &[200, 400],
    ),
    (
        "what looks like an ambiguous head, in a body",
        "POST /a HTTP/1.1\r\nContent-Length: 47\r\n\r\n\
         x\nContent-Length: 1\nTransfer-Encoding: chunked\nGET /b HTTP/1.1\r\n\r\n",
        &["POST /a x\nContent-Length: 1\nTransfer-Encoding: chunked\n", "GET /b "],
        &[200, 200],
    ),
    (
        "an underscore for the hyphen",
        "POST /a HTTP/1.1\r\nTransfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        &["POST /a abc"],
        FINE,
    ),
];

const CODINGS: &[Vector] = &[
    ("chunks", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", &["POST /a abc"], FINE),
    (
        "chunks, in capitals",
        "POST /a HTTP/1.1\r\ntRANSFER-eNCODING:\tCHUNKED \r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &["POST /a abc"],
        FINE,
    ),
    ("an unknown coding", "POST /a HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[], REFUSED),
    ("a space before the colon", "POST /a HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[], REFUSED),
    (
        "a space before the name",
        "POST /a HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("a space before the first name", "POST /a HTTP/1.1\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[], REFUSED),
    (
        "a vertical tab before the coding",
        "POST /a HTTP/1.1\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "chunked and then not",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "not chunked and then",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("chunked twice", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", &[], REFUSED),
    (
        "chunked on two lines",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "another coding before chunked",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "another coding after chunked",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("chunked in quotes", "POST /a HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", &[], REFUSED),
    ("chunked with a parameter", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", &[], REFUSED),
    ("no coding", "POST /a HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", &[], REFUSED),
    (
        "a coding behind a lone CR",
        "POST /a HTTP/1.1\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("a coding on a folded line", "POST /a HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", &[], REFUSED),
    ("a folded line", "POST /a HTTP/1.1\r\nX: y\r\n Content-Length: 3\r\n\r\nabc", &[], REFUSED),
    (
        "HTTP/1.0 with chunks",
        "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "an extension of a chunk",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0;c\r\n\r\n",
        &["POST /a abc"],
        FINE,
    ),
    (
        "zeros before a size",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0003\r\nabc\r\n000\r\n\r\n",
        &["POST /a abc"],
        FINE,
    ),
    (
        "a trailer",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
        &["POST /a abc"],
        FINE,
    ),
    (
        "a trailer that frames",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: content-length, host\r\n\r\n\
         0\r\nContent-Length: 3\r\nHost: b\r\nTransfer-Encoding: x\r\n\r\n",
        &["POST /a "],
        FINE,
    ),
    ("chunks without an end", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", &[], REFUSED),
    (
        "a chunk without its CRLF",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "an extension with LF alone",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("a size with LF alone", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", &[], REFUSED),
    (
        "a size with a prefix",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "a size with a sign",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("a negative size", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", &[], REFUSED),
    (
        "a size behind a space",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "a size of 68 bits",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    (
        "a size that overflows with its CRLF",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        &[],
        REFUSED,
    ),
    ("no size", "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n", &[], REFUSED),
];

const HEADS: &[Vector] = &[
    ("lines ended by LF alone", "GET /a HTTP/1.1\nHost: a\n\n", &["GET /a "], FINE),
    ("no Host", "GET /a HTTP/1.1\r\n\r\n", &["GET /a "], FINE),
    ("HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n", &["GET /a "], FINE),
    ("two Hosts", "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &[], REFUSED),
    ("a target's authority that is the Host", "GET http://a/b HTTP/1.1\r\nHost: A\r\n\r\n", &["GET http://a/b "], FINE),
    ("a target's authority that is not", "GET http://a/b HTTP/1.1\r\nHost: b\r\n\r\n", &[], REFUSED),
    ("a header without a name", "GET /a HTTP/1.1\r\n: x\r\n\r\n", &[], REFUSED),
    ("a header without a colon", "GET /a HTTP/1.1\r\nx\r\n\r\n", &[], REFUSED),
    ("NUL in a name", "GET /a HTTP/1.1\r\nx\0: y\r\n\r\n", &[], REFUSED),
    ("NUL in a value", "GET /a HTTP/1.1\r\nx: a\0b\r\n\r\n", &[], REFUSED),
    ("a letter outside ASCII in a name", "GET /a HTTP/1.1\r\n\u{e9}: y\r\n\r\n", &[], REFUSED),
    ("letters outside ASCII in a value", "GET /a HTTP/1.1\r\nX: \u{e9}\r\n\r\n", &["GET /a "], FINE),
    ("a fragment", "GET /a#b HTTP/1.1\r\n\r\n", &["GET /a "], FINE),
];

/// What nobody takes for a request line: as the first bytes of a connection they are no HTTP, and the rule about
/// requests ends it.
const LINES: &[&str] = &[
    "GET  /a HTTP/1.1\r\n\r\n",
    "GET /a  HTTP/1.1\r\n\r\n",
    "GET\t/a HTTP/1.1\r\n\r\n",
    "GET /a HTTP/1.1 x\r\n\r\n",
    "GET /a HTTP/2.0\r\n\r\n",
    "GET /a HTTP/1.1\r\r\n\r\n",
    "GET /a\0 HTTP/1.1\r\n\r\n",
    "GET /a http/1.1\r\n\r\n",
    "GET /a\r\n\r\n",
    "G(T /a HTTP/1.1\r\n\r\n",
    " GET /a HTTP/1.1\r\n\r\n",
];

/// Sends `sent` and the end of data; gives the statuses of the answers, up to the connection's end.
async fn told(web: &Pod, to: SocketAddr, sent: &[u8]) -> Vec<u16> {
    let mut client = web.connect(to).await;
    // What is refused may be reset while it is being sent, and the answer read before that.
    let _ = client.write_all(sent).await;
    let _ = client.shutdown().await;
    let mut answers = Vec::new();
    while let Ok(1..) = soon(client.read_buf(&mut answers)).await {}
    let answers = String::from_utf8_lossy(&answers);
    let status = |answer: &str| answer.get(2..5).and_then(|status| status.parse().ok());
    answers.split("HTTP/1.").skip(1).map(|answer| status(answer).unwrap_or(0)).collect()
}

const FIRST: &str = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";

async fn check(vectors: &[Vector]) {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = routed(&mesh);
    mesh.policy(no_admin());
    let pod = listener.local_addr().unwrap();
    let mut wrong = Vec::new();
    for (name, sent, seen, statuses) in vectors {
        for (way, to) in [("by the Service", vip), ("to the pod", pod)] {
            for first in [&[][..], &[FIRST]] {
                let sent = first.concat() + sent;
                let (told, heard) = heard(&listener, record, told(&web, to, sent.as_bytes())).await;
                let firsts = first.iter().map(|_| "GET /first ");
                let seen: Vec<&str> = firsts.chain(seen.iter().copied()).collect();
                let statuses: Vec<u16> = first.iter().map(|_| 200).chain(statuses.iter().copied()).collect();
                if heard != seen || told != statuses {
                    wrong.push(format!("{name}, {way}, {first:?}: told {told:?} for {statuses:?}, heard {heard:#?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_length_of_a_request_is_said_once() {
    check(LENGTHS).await;
}

#[tokio::test]
async fn chunks_are_read_in_one_way() {
    check(CODINGS).await;
}

#[tokio::test]
async fn heads_are_read_in_one_way() {
    check(HEADS).await;
}

#[tokio::test]
async fn what_is_no_request_line_is_no_request() {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = routed(&mesh);
    mesh.policy(no_admin());
    for line in LINES {
        for to in [vip, listener.local_addr().unwrap()] {
            let (told_, heard_) = heard(&listener, record, told(&web, to, line.as_bytes())).await;
            assert!(heard_.is_empty() && [&[], REFUSED].contains(&&told_[..]), "{line:?}: {told_:?} {heard_:?}");
            let (told_, heard_) = heard(&listener, record, told(&web, to, format!("{FIRST}{line}").as_bytes())).await;
            assert_eq!((&told_[..], &heard_[..]), (&[200, 400][..], &["GET /first ".to_owned()][..]), "{line:?}");
        }
    }
}

/// Every vector behind a request that nothing is wrong with, and every line: what random ones are made of.
pub(in crate::proxy) fn corpus() -> Vec<Vec<u8>> {
    let vectors = LENGTHS.iter().chain(CODINGS).chain(HEADS).map(|(_, sent, ..)| *sent);
    let all: Vec<&str> = vectors.chain(LINES.iter().copied()).collect();
    let alone = all.iter().map(|sent| sent.as_bytes().to_vec());
    alone.chain(all.iter().map(|sent| [FIRST, sent].concat().into_bytes())).collect()
}

/// Whatever is sent: the application reads whole requests in one way, and none that the rule denies.
#[test]
fn random_bytes_smuggle_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = runtime.block_on(async { routed(&mesh) });
    mesh.policy(no_admin());
    let pod = listener.local_addr().unwrap();
    fuzz_bytes(corpus(), |bytes| {
        for to in [vip, pod] {
            let (_, heard) = runtime.block_on(heard(&listener, record, told(&web, to, &bytes)));
            for one in heard {
                let target = one.split(' ').nth(1).unwrap_or_default();
                prop_assert!(!one.starts_with(AMBIGUOUS) && !target.starts_with("/admin"), "{} heard {one}", to);
            }
        }
        Ok(())
    });
}
