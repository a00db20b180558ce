//! Our record layer against rustls' own, and against a wire that lies.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::records::{MAX_CONTENT, MAX_RECORD, OVERHEAD, RecordError, Records};
use super::{Session, Tls};
use crate::identity::testing::{TestCa, identity};
use crate::model::identity::Identity;
use crate::model::outcome::Outcome;

const ALPN: &[&[u8]] = &[b"mesh-raw/1", b"h2"];

fn names() -> (Identity, Identity) {
    (identity("shop", "web"), identity("shop", "db"))
}

fn ends() -> (Tls, Tls) {
    let (web, db) = names();
    let ca = TestCa::new("root");
    (Tls::new(ca.store(&[&web])), Tls::new(ca.store(&[&db])))
}

/// Two sessions with each other.
async fn sessions() -> (Session, Session) {
    let ((client, server), (web, db)) = (ends(), names());
    let (mut near, mut far) = duplex(64 << 10);
    let (dialled, accepted) =
        tokio::join!(client.connect_session(&mut near, &web, &db, ALPN), server.accept_session(&mut far, &db, ALPN));
    let ((dialled, server_is), (accepted, client_is)) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!((server_is.identity(), client_is.identity()), (&db, &web));
    assert_eq!((server_is.alpn(), client_is.alpn()), (&b"mesh-raw/1"[..], &b"mesh-raw/1"[..]));
    (dialled, accepted)
}

fn seal(records: &mut Records, head: &[u8], data: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    let (mut head, mut data) = (head, data);
    while !head.is_empty() || !data.is_empty() {
        let mut output = vec![0; 3 * MAX_RECORD];
        let sealed = records.seal(head, data, &mut output).unwrap();
        wire.extend_from_slice(&output[..sealed.written]);
        (head, data) = (&[], &data[sealed.read..]);
    }
    wire
}

/// Opens `wire` as it would come in pieces of these lengths.
fn open(records: &mut Records, wire: &[u8], pieces: &mut dyn Iterator<Item = usize>) -> Result<Vec<u8>, RecordError> {
    let (mut input, mut content, mut wire) = (Vec::new(), Vec::new(), wire);
    while !wire.is_empty() {
        let piece = pieces.next().unwrap_or(usize::MAX).clamp(1, wire.len());
        input.extend_from_slice(&wire[..piece]);
        wire = &wire[piece..];
        let mut output = vec![0; 2 * MAX_RECORD];
        loop {
            let opened = records.open(&input, &mut output)?;
            content.extend_from_slice(&output[..opened.written]);
            input.drain(..opened.read);
            if opened.read == 0 || opened.closed {
                break;
            }
        }
    }
    assert!(input.is_empty(), "{} bytes of no record", input.len());
    Ok(content)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

#[tokio::test]
async fn what_one_side_seals_the_other_opens() {
    let (mut near, mut far) = sessions().await;
    for length in [1, 2, 100, MAX_CONTENT - 1, MAX_CONTENT, MAX_CONTENT + 1, 5 * MAX_CONTENT, 300_000] {
        let data = pattern(length);
        let wire = seal(&mut near.records, b"head", &data);
        let opened = open(&mut far.records, &wire, &mut std::iter::empty()).unwrap();
        assert!(opened.starts_with(b"head") && opened[4..] == data, "{length}");
    }
}

/// Reads and writes of `io` pass through `session`, one at a time.
async fn echo_through(io: &mut DuplexStream, session: &mut Session, data: &[u8]) -> Vec<u8> {
    let wire = seal(&mut session.records, &[], data);
    let (mut read, mut write) = tokio::io::split(io);
    let (mut sealed, mut content) = (std::mem::take(&mut session.sealed), std::mem::take(&mut session.opened));
    let receive = async {
        let mut output = vec![0; 2 * MAX_RECORD];
        while content.len() < data.len() {
            let opened = session.records.open(&sealed, &mut output).unwrap();
            content.extend_from_slice(&output[..opened.written]);
            sealed.drain(..opened.read);
            if opened.read == 0 {
                assert!(read.read_buf(&mut sealed).await.unwrap() > 0, "cut off");
            }
        }
    };
    let (sent, ()) = tokio::join!(write.write_all(&wire), receive);
    sent.unwrap();
    content
}

#[tokio::test]
async fn rustls_understands_us_and_we_understand_rustls_also_across_key_updates() {
    let ((client, server), (web, db)) = (ends(), names());
    let (mut near, far) = duplex(32 << 10);
    let echo = tokio::spawn(async move {
        let (mut stream, _) = server.accept(far, &names().1, ALPN).await.unwrap();
        let mut data = vec![0; 10_000];
        let mut since_update = 0;
        loop {
            let count = stream.read(&mut data).await.unwrap();
            if count == 0 {
                // Only a close_notify gets here; a mere end of the connection is an error.
                break;
            }
            stream.write_all(&data[..count]).await.unwrap();
            stream.flush().await.unwrap();
            since_update += count;
            if since_update > 100_000 {
                since_update = 0;
                stream.get_mut().1.refresh_traffic_keys().unwrap();
            }
        }
    });
    let (mut session, peer) = client.connect_session(&mut near, &web, &db, ALPN).await.unwrap();
    assert_eq!(peer.identity(), &db);
    session.records = session.records.with_records_per_key(7);
    let data = pattern(1_000_000);
    assert!(echo_through(&mut near, &mut session, &data).await == data);
    let mut output = [0; 100];
    let written = session.records.seal_close(&mut output).unwrap();
    near.write_all(&output[..written]).await.unwrap();
    echo.await.unwrap();
}

#[tokio::test]
async fn a_session_accepts_a_rustls_client_that_speaks_with_its_last_flight() {
    let ((client, server), (web, db)) = (ends(), names());
    let (near, mut far) = duplex(64 << 10);
    let dialled = tokio::spawn(async move {
        let (mut stream, _) = client.connect(near, &web, &names().1, ALPN).await.unwrap();
        stream.write_all(b"at once").await.unwrap();
        stream.flush().await.unwrap();
        stream
    });
    let (session, peer) = server.accept_session(&mut far, &db, ALPN).await.unwrap();
    assert_eq!(peer.identity(), &names().0);
    let Session { mut records, mut opened, mut sealed, closed: _ } = session;
    while opened != b"at once" {
        let mut output = vec![0; MAX_RECORD];
        let step = records.open(&sealed, &mut output).unwrap();
        opened.extend_from_slice(&output[..step.written]);
        sealed.drain(..step.read);
        if step.read == 0 {
            assert!(far.read_buf(&mut sealed).await.unwrap() > 0);
        }
    }
    dialled.await.unwrap();
}

#[tokio::test]
async fn keys_are_replaced_in_both_directions_in_time() {
    let (near, far) = sessions().await;
    let mut near = near.records.with_records_per_key(3);
    let mut far = far.records;
    let data = pattern(40 * MAX_CONTENT);
    let wire = seal(&mut near, &[], &data);
    assert_eq!(open(&mut far, &wire, &mut std::iter::empty()).unwrap(), data);
    assert!(format!("{near:?}").contains("sent: 1") || format!("{near:?}").contains("sent: 2"), "{near:?}");
}

#[tokio::test]
async fn a_changed_a_repeated_a_dropped_and_a_foreign_record_do_not_open() {
    for (name, spoil) in [
        ("changed", (|wire, _| wire[OVERHEAD] ^= 1) as fn(&mut Vec<u8>, &[u8])),
        ("repeated", |wire, _| wire.extend_from_within(..)),
        ("dropped", |wire, second| *wire = second.to_vec()),
        ("foreign", |wire, _| wire.splice(.., [23, 3, 3, 0, 20].into_iter().chain([7; 20])).for_each(drop)),
    ] {
        let (mut near, mut far) = sessions().await;
        let mut wire = seal(&mut near.records, &[], b"first");
        let second = seal(&mut near.records, &[], b"second");
        spoil(&mut wire, &second);
        let opened = open(&mut far.records, &wire, &mut std::iter::empty());
        assert_eq!(opened, Err(RecordError::Forged), "{name}");
    }
}

#[tokio::test]
async fn what_is_no_record_is_named() {
    let (_, mut far) = sessions().await;
    for wire in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[23, 3, 3, 0xff, 0xff, 0], &[23, 3, 3, 0, 16, 0], &[20, 3, 3, 0, 1, 1]]
    {
        let opened = far.records.open(wire, &mut [0; 100]);
        assert!(matches!(opened, Err(RecordError::Protocol(_))), "{opened:?}");
    }
}

#[tokio::test]
async fn an_orderly_end_is_told_from_a_truncated_one() {
    let (mut near, mut far) = sessions().await;
    let mut wire = [0; 100];
    let written = near.records.seal_close(&mut wire).unwrap();
    let opened = far.records.open(&wire[..written], &mut [0; 100]).unwrap();
    assert!(opened.closed && opened.read == written);
    let cut = far.records.open(&wire[..written - 1], &mut [0; 100]).unwrap();
    assert_eq!((cut.read, cut.closed), (0, false));
}

#[tokio::test]
async fn a_peer_that_ends_right_behind_the_handshake_has_ended_in_order() {
    for said in [&b""[..], b"bye"] {
        let ((client, server), (web, db)) = (ends(), names());
        let (mut near, mut far) = duplex(64 << 10);
        let ((), accepted) = tokio::join!(
            async {
                // In one turn: the server finds all of it with the handshake's last flight.
                let mut records = client.connect_session(&mut near, &web, &db, ALPN).await.unwrap().0.records;
                let mut wire = if said.is_empty() { Vec::new() } else { seal(&mut records, said, &[]) };
                let mut end = [0; 64];
                let length = records.seal_close(&mut end).unwrap();
                wire.extend_from_slice(&end[..length]);
                near.write_all(&wire).await.unwrap();
                drop(near);
            },
            server.accept_session(&mut far, &db, ALPN)
        );
        let session = accepted.unwrap().0;
        assert_eq!((&session.opened[..], session.closed), (said, true));
    }
}

#[tokio::test]
async fn a_peer_with_the_wrong_name_is_refused_and_told() {
    let ((client, server), (web, db)) = (ends(), names());
    let (mut near, mut far) = duplex(64 << 10);
    let other = identity("shop", "other");
    let (dialled, accepted) = tokio::join!(
        async {
            let dialled = client.connect_session(&mut near, &web, &other, ALPN).await;
            drop(near);
            dialled
        },
        server.accept_session(&mut far, &db, ALPN)
    );
    assert_eq!(dialled.unwrap_err().outcome(), Outcome::IdentityMismatch);
    let refused = accepted.unwrap_err();
    assert!(matches!(refused, super::TlsError::RefusedByPeer { .. }), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn however_the_wire_is_cut_the_content_is_the_same(
        writes in prop::collection::vec(0..40_000_usize, 1..6),
        pieces in prop::collection::vec(1..20_000_usize, 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (mut near, mut far) = runtime.block_on(sessions());
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for length in writes {
            let data = pattern(length);
            wire.extend(seal(&mut near.records, b"h", &data));
            expected.push(b'h');
            expected.extend(data);
        }
        let opened = open(&mut far.records, &wire, &mut pieces.into_iter().cycle());
        prop_assert!(opened == Ok(expected));
    }
}
