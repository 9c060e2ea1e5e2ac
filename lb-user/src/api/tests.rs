use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use hyper::Method;
use serde_json::{Value, json};

use super::*;

/// A daemon that answers every command with its own name.
async fn echo() -> (tempfile::TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/api.sock");
    let mut socket = Socket::bind(&path).unwrap();
    let listener = socket.listener.take().unwrap();
    let (sender, mut requests) = tokio::sync::mpsc::channel::<Request>(1);
    tokio::spawn(async move {
        // The socket's file lives as long as its server.
        let _socket = socket;
        axum::serve(listener, router(sender)).await.unwrap();
    });
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            let answer = if let Command::Reload = request.command {
                Err(Error::Conflict(vec!["one".into(), "two".into()]))
            } else if let Command::Status = request.command {
                Ok(json!({"services": [{"name": "web"}]}))
            } else {
                Ok(Value::String(format!("{:?}", request.command)))
            };
            request.reply.send(answer).unwrap();
        }
    });
    (directory, Client::new(&path))
}

#[tokio::test]
async fn every_documented_route_exists_and_nothing_else() {
    let (_directory, client) = echo().await;
    let document: Value = client.send(Method::GET, "/v1/openapi.json").await.unwrap();
    assert_eq!(document, serde_json::to_value(openapi()).unwrap());
    let paths = document["paths"].as_object().unwrap();
    let mut routes = BTreeSet::new();
    for (path, operations) in paths {
        for method in operations.as_object().unwrap().keys() {
            routes.insert(format!("{method} {path}"));
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace(['{', '}'], "");
            let answer: Result<Value, _> = client.send(method, &path).await;
            if let Err(ClientError::Refused(errors)) = answer {
                let missing = errors.iter().any(|error| error.contains("openapi.json"));
                assert!(!missing, "{path}: {errors:?}");
            }
        }
    }
    let expected = [
        "delete /v1/interfaces/{interface}",
        "delete /v1/services/{service}",
        "delete /v1/services/{service}/backends/{backend}",
        "get /v1/audit",
        "get /v1/guard",
        "get /v1/openapi.json",
        "get /v1/services",
        "get /v1/services/{service}",
        "get /v1/stats",
        "get /v1/status",
        "patch /v1/services/{service}/backends/{backend}",
        "post /v1/diff",
        "post /v1/explain",
        "post /v1/guard/load",
        "post /v1/guard/reset",
        "post /v1/guard/test",
        "post /v1/interfaces",
        "post /v1/reload",
        "post /v1/services",
        "post /v1/services/{service}/backends",
    ];
    assert_eq!(routes, expected.map(str::to_owned).into());
    // A route that is made otherwise would be in no document.
    assert!(!include_str!("routes.rs").contains(".route("));
}

#[test]
fn the_document_names_only_schemas_that_it_has() {
    let document = serde_json::to_value(openapi()).unwrap();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    let references = text.split("#/components/schemas/").skip(1);
    let mut count = 0;
    for name in references.filter_map(|rest| rest.split('"').next()) {
        assert!(schemas.contains_key(name), "{name}");
        count += 1;
    }
    assert!(count > 20);
}

/// A body of so many bytes to compare, and what becomes of it.
async fn sent(client: &Client, len: usize) -> Result<Value, ClientError> {
    let request = DiffRequest {
        toml: "#".repeat(len),
        file: String::new(),
    };
    client.send_json(Method::POST, "/v1/diff", &request).await
}

#[tokio::test]
async fn a_body_may_be_large_but_not_endless() {
    let (_directory, client) = echo().await;
    assert!(sent(&client, 8 << 20).await.is_ok());
    let error = sent(&client, BODY_MAX).await.unwrap_err().to_string();
    assert!(error.ends_with("allowed are 67108864"), "{error}");
}

#[tokio::test]
async fn requests_become_commands_and_refusals_errors() {
    let (_directory, client) = echo().await;
    let patch = BackendPatch {
        weight: Some(7),
        draining: None,
    };
    let path = "/v1/services/web/backends/vm1";
    let answer: String = client.send_json(Method::PATCH, path, &patch).await.unwrap();
    assert!(
        answer.starts_with("PatchBackend(BackendId") && answer.contains("Some(7)"),
        "{answer}"
    );
    let answer: String = client
        .send(Method::DELETE, &format!("{path}?drop_flows=true"))
        .await
        .unwrap();
    assert!(answer.contains("drop_flows: true"), "{answer}");
    let service: Value = client.send(Method::GET, "/v1/services/web").await.unwrap();
    assert_eq!(service["name"], "web");

    let refused = |result: Result<Value, ClientError>| match result {
        Err(ClientError::Refused(errors)) => errors.join("; "),
        other => panic!("{other:?}"),
    };
    let get = |path: &'static str| client.send::<Value>(Method::GET, path);
    assert_eq!(
        refused(get("/v1/services/shop").await),
        "there is no service \"shop\""
    );
    assert!(refused(get("/v2/status").await).contains("no such route"));
    assert!(refused(client.send(Method::DELETE, "/v1/status").await).contains("this method"));
    assert_eq!(
        refused(client.send(Method::POST, "/v1/reload").await),
        "one; two"
    );
    assert!(
        refused(client.send(Method::DELETE, "/v1/services/a%20b").await)
            .contains("\"a b\" is not a name")
    );
    assert!(
        refused(client.send(Method::DELETE, "/v1/services/%FF").await).contains("UTF-8"),
        "not as text, as axum would"
    );
    let wrong = json!({"wieght": 7});
    let error = refused(client.send_json(Method::PATCH, path, &wrong).await);
    assert!(error.contains("unknown field `wieght`"), "{error}");
    assert!(refused(client.send(Method::PATCH, path).await).contains("EOF"));
}

#[tokio::test]
async fn a_socket_is_private_taken_over_from_the_dead_and_not_from_the_living() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o660
    );
    let error = Socket::bind(&path).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    drop(socket);
    assert!(!path.exists());

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead process left it");
    drop(Socket::bind(&path).unwrap());
    std::fs::write(&path, "precious").unwrap();
    assert!(
        Socket::bind(&path)
            .unwrap_err()
            .to_string()
            .contains("is no socket")
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    let nobody = Client::new(&directory.path().join("none.sock"));
    let error = nobody
        .send::<Value>(Method::GET, "/v1/status")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("weir run"), "{error}");
}
