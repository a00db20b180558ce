//! What is spoken on a port that declares nothing: told by the first bytes, and remembered.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http::{TWO, app, ask, route, routed, rule};
use super::rig::{Mesh, soon};

#[tokio::test]
async fn who_speaks_first_or_no_http_is_not_held_up_by_a_route() {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = routed(&mesh);
    let mut client = web.connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    server.write_all(b"220 hello\r\n").await.unwrap();
    let mut greeting = [0; 11];
    soon(client.read_exact(&mut greeting)).await.unwrap();
    client.write_all(b"HELO\r\n").await.unwrap();
    let mut said = [0; 6];
    soon(server.read_exact(&mut said)).await.unwrap();
    assert_eq!((&greeting, &said), (b"220 hello\r\n", b"HELO\r\n"));

    let mut client = web.connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    client.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    let mut said = [0; 14];
    soon(server.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"*1\r\n$4\r\nPING\r\n");
}

#[tokio::test]
async fn a_port_that_had_requests_is_not_dialled_before_the_next_one_has_come() {
    let mesh = Mesh::new();
    let (web, first, second) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"), mesh.pod(&mesh.b, "cart"));
    let listener = first.listen();
    let vip = mesh.service("shop", &[(&first, listener.local_addr().unwrap())]);
    let (other, _told) = app(&second, TWO);
    mesh.service("other", &[(&second, other)]);
    mesh.change(route("shop", vec![("/", rule(0, &[("other", 1)]))]));
    for _ in 0..3 {
        let mut client = web.connect(vip).await;
        assert_eq!(ask(&mut client, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.1, "two");
    }
    drop(soon(listener.accept()).await.unwrap());
    // Who waits for a greeting is dialled for all the same, and is the next one that the endpoint sees.
    for greeting in [b"220 hello\r\n", b"220 again\r\n"] {
        let mut client = web.connect(vip).await;
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        server.write_all(greeting).await.unwrap();
        let mut read = [0; 11];
        soon(client.read_exact(&mut read)).await.unwrap();
        assert_eq!(&read, greeting);
    }
}
