use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot};
use utoipa::OpenApi;

use super::{
    Audit, BackendPatch, Command, Diff, DiffRequest, Done, Error, ExplainRequest, Explained,
    Refusal, RemoveBackend, Reply, Request, ServiceView, Stats, Status,
};
use crate::model::{BackendId, Name};
use crate::spec::{BackendSpec, InterfaceSpec, ServiceSpec};

/// The document that `/v1/openapi.json` serves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Weir",
        description = "The API of weir's daemon, on its Unix socket"
    ),
    paths(
        status,
        services,
        service,
        stats,
        audit,
        explain,
        diff,
        reload,
        add_service,
        remove_service,
        add_backend,
        patch_backend,
        remove_backend,
        attach,
        detach,
        document
    ),
    components(schemas(Refusal))
)]
struct Document;

/// Returns the OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

type Daemon = State<mpsc::Sender<Request>>;

/// Returns the routes; commands go to `daemon`.
pub fn router(daemon: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/openapi.json", get(document))
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/audit", get(audit))
        .route("/v1/explain", post(explain))
        .route("/v1/diff", post(diff))
        .route("/v1/reload", post(reload))
        .route("/v1/services", get(services).post(add_service))
        .route(
            "/v1/services/{service}",
            get(service).delete(remove_service),
        )
        .route("/v1/services/{service}/backends", post(add_backend))
        .route(
            "/v1/services/{service}/backends/{backend}",
            patch(patch_backend).delete(remove_backend),
        )
        .route("/v1/interfaces", post(attach))
        .route("/v1/interfaces/{interface}", delete(detach))
        .fallback(async || {
            Error::NotFound("there is no such route: see /v1/openapi.json".to_owned())
        })
        .method_not_allowed_fallback(async || {
            refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                vec!["the route does not have this method: see /v1/openapi.json".to_owned()],
            )
        })
        .with_state(daemon)
}

fn refuse(status: StatusCode, errors: Vec<String>) -> Response {
    (status, Json(Refusal { errors })).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refuse(status, self.reasons())
    }
}

/// A JSON body; what is wrong with one is said as everything else is.
struct Body<T>(T);

impl<S: Send + Sync, T> FromRequest<S> for Body<T>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
{
    type Rejection = Error;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Error> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Error::Invalid(vec![rejection.body_text()])),
        }
    }
}

fn name(field: &str, text: &str) -> Result<Name, Error> {
    let result = text.parse();
    result.map_err(|error| Error::Invalid(vec![format!("{field}: {error}")]))
}

fn backend_id((service, backend): (String, String)) -> Result<BackendId, Error> {
    Ok(BackendId {
        service: name("service", &service)?,
        backend: name("backend", &backend)?,
    })
}

async fn value(daemon: &mpsc::Sender<Request>, command: Command) -> Reply {
    let stopping = || Error::Internal("the daemon is stopping".to_owned());
    let (reply, answer) = oneshot::channel();
    let request = Request { command, reply };
    daemon.send(request).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?
}

async fn ask(daemon: &mpsc::Sender<Request>, command: Command) -> Result<Response, Error> {
    Ok(Json(value(daemon, command).await?).into_response())
}

#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "This document")))]
async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}

#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Status).await
}

#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = Vec<ServiceView>)))]
async fn services(State(daemon): Daemon) -> Result<Response, Error> {
    let mut status = value(&daemon, Command::Status).await?;
    let services = status.get_mut("services").map(serde_json::Value::take);
    Ok(Json(services).into_response())
}

#[utoipa::path(
    get, path = "/v1/services/{service}", params(("service" = String, Path)),
    responses((status = 200, body = ServiceView), (status = 404, body = Refusal))
)]
async fn service(State(daemon): Daemon, Path(service): Path<String>) -> Result<Response, Error> {
    let wanted = name("service", &service)?;
    let status = value(&daemon, Command::Status).await?;
    let services = status
        .get("services")
        .and_then(|services| services.as_array());
    let found = services.into_iter().flatten().find(|service| {
        service.get("name").and_then(|name| name.as_str()) == Some(wanted.as_str())
    });
    match found {
        Some(service) => Ok(Json(service).into_response()),
        None => Err(Error::NotFound(format!("there is no service \"{wanted}\""))),
    }
}

#[utoipa::path(get, path = "/v1/stats", responses((status = 200, body = Stats)))]
async fn stats(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Stats).await
}

#[utoipa::path(get, path = "/v1/audit", responses((status = 200, body = Audit)))]
async fn audit(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Audit).await
}

#[utoipa::path(
    post, path = "/v1/explain", request_body = ExplainRequest,
    responses((status = 200, body = Explained), (status = 400, body = Refusal))
)]
async fn explain(
    State(daemon): Daemon,
    Body(request): Body<ExplainRequest>,
) -> Result<Response, Error> {
    ask(&daemon, Command::Explain(request)).await
}

#[utoipa::path(
    post, path = "/v1/diff", request_body = DiffRequest,
    responses((status = 200, body = Diff), (status = 400, body = Refusal))
)]
async fn diff(State(daemon): Daemon, Body(request): Body<DiffRequest>) -> Result<Response, Error> {
    ask(&daemon, Command::Diff(request)).await
}

#[utoipa::path(
    post, path = "/v1/reload",
    responses((status = 200, body = Done), (status = 400, body = Refusal), (status = 409, body = Refusal))
)]
async fn reload(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Reload).await
}

#[utoipa::path(
    post, path = "/v1/services", request_body = ServiceSpec,
    responses((status = 200, body = Done), (status = 400, body = Refusal), (status = 409, body = Refusal))
)]
async fn add_service(
    State(daemon): Daemon,
    Body(spec): Body<ServiceSpec>,
) -> Result<Response, Error> {
    ask(&daemon, Command::AddService(Box::new(spec))).await
}

#[utoipa::path(
    delete, path = "/v1/services/{service}", params(("service" = String, Path)),
    responses((status = 200, body = Done), (status = 404, body = Refusal))
)]
async fn remove_service(
    State(daemon): Daemon,
    Path(service): Path<String>,
) -> Result<Response, Error> {
    ask(&daemon, Command::RemoveService(name("service", &service)?)).await
}

#[utoipa::path(
    post, path = "/v1/services/{service}/backends", params(("service" = String, Path)),
    request_body = BackendSpec,
    responses(
        (status = 200, body = Done), (status = 400, body = Refusal), (status = 404, body = Refusal),
        (status = 409, body = Refusal)
    )
)]
async fn add_backend(
    State(daemon): Daemon,
    Path(service): Path<String>,
    Body(spec): Body<BackendSpec>,
) -> Result<Response, Error> {
    ask(
        &daemon,
        Command::AddBackend(name("service", &service)?, spec),
    )
    .await
}

#[utoipa::path(
    patch, path = "/v1/services/{service}/backends/{backend}",
    params(("service" = String, Path), ("backend" = String, Path)), request_body = BackendPatch,
    responses((status = 200, body = Done), (status = 400, body = Refusal), (status = 404, body = Refusal))
)]
async fn patch_backend(
    State(daemon): Daemon,
    Path(path): Path<(String, String)>,
    Body(change): Body<BackendPatch>,
) -> Result<Response, Error> {
    ask(&daemon, Command::PatchBackend(backend_id(path)?, change)).await
}

#[utoipa::path(
    delete, path = "/v1/services/{service}/backends/{backend}",
    params(("service" = String, Path), ("backend" = String, Path), RemoveBackend),
    responses((status = 200, body = Done), (status = 400, body = Refusal), (status = 404, body = Refusal))
)]
async fn remove_backend(
    State(daemon): Daemon,
    Path(path): Path<(String, String)>,
    query: Result<Query<RemoveBackend>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Error> {
    let Query(how) = query.map_err(|error| Error::Invalid(vec![error.body_text()]))?;
    ask(&daemon, Command::RemoveBackend(backend_id(path)?, how)).await
}

#[utoipa::path(
    post, path = "/v1/interfaces", request_body = InterfaceSpec,
    responses((status = 200, body = Done), (status = 400, body = Refusal), (status = 409, body = Refusal))
)]
async fn attach(State(daemon): Daemon, Body(spec): Body<InterfaceSpec>) -> Result<Response, Error> {
    ask(&daemon, Command::Attach(spec)).await
}

#[utoipa::path(
    delete, path = "/v1/interfaces/{interface}", params(("interface" = String, Path)),
    responses((status = 200, body = Done), (status = 404, body = Refusal))
)]
async fn detach(State(daemon): Daemon, Path(interface): Path<String>) -> Result<Response, Error> {
    ask(&daemon, Command::Detach(interface)).await
}
