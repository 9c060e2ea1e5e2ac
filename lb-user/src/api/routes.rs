use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot};
use utoipa::OpenApi;

use super::extract::{Body, Names, Options};
use super::operations::Operations;
use super::refusals::{Broken, Impossible, Missing, Wrong};
use super::{
    Audit, BackendPatch, Command, Diff, DiffRequest, Done, Error, ExplainRequest, Explained,
    GuardTest, GuardTested, GuardView, ListLoad, ListReset, Refusal, RemoveBackend, Reply, Request,
    ServiceView, Stats, Status,
};
use crate::model::{BackendId, Name};
use crate::spec::{BackendSpec, InterfaceSpec, ServiceSpec};

/// What is in the document besides the operations.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Weir",
        description = "The API of weir's daemon, on its Unix socket"
    ),
    components(schemas(
        Audit,
        BackendPatch,
        BackendSpec,
        Diff,
        DiffRequest,
        Done,
        ExplainRequest,
        Explained,
        GuardTest,
        GuardTested,
        GuardView,
        InterfaceSpec,
        ListLoad,
        ListReset,
        Refusal,
        ServiceSpec,
        ServiceView,
        Stats,
        Status
    ))
)]
struct Document;

type Daemon = State<mpsc::Sender<Request>>;

/// All there is to ask for. `utoipa::path` makes a type `__path_NAME` of each handler.
fn operations() -> Operations<mpsc::Sender<Request>> {
    Operations::new()
        .with::<__path_document, _>(document)
        .with::<__path_status, _>(status)
        .with::<__path_stats, _>(stats)
        .with::<__path_audit, _>(audit)
        .with::<__path_explain, _>(explain)
        .with::<__path_diff, _>(diff)
        .with::<__path_guard, _>(guard)
        .with::<__path_test_guard, _>(test_guard)
        .with::<__path_load_list, _>(load_list)
        .with::<__path_reset_list, _>(reset_list)
        .with::<__path_reload, _>(reload)
        .with::<__path_services, _>(services)
        .with::<__path_add_service, _>(add_service)
        .with::<__path_service, _>(service)
        .with::<__path_remove_service, _>(remove_service)
        .with::<__path_add_backend, _>(add_backend)
        .with::<__path_patch_backend, _>(patch_backend)
        .with::<__path_remove_backend, _>(remove_backend)
        .with::<__path_attach, _>(attach)
        .with::<__path_detach, _>(detach)
}

/// Returns the OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    operations().document(Document::openapi())
}

/// Returns the routes; commands go to `daemon`.
pub fn router(daemon: mpsc::Sender<Request>) -> Router {
    operations().router(daemon)
}

/// Returns a refusal with a status.
pub(super) fn refuse(status: StatusCode, errors: Vec<String>) -> Response {
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

#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "This document", body = serde_json::Value)))]
async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}

#[utoipa::path(get, path = "/v1/status", responses((status = 200, description = "Done", body = Status), Broken))]
async fn status(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Status).await
}

#[utoipa::path(get, path = "/v1/services", responses((status = 200, description = "Done", body = Vec<ServiceView>), Broken))]
async fn services(State(daemon): Daemon) -> Result<Response, Error> {
    let mut status = value(&daemon, Command::Status).await?;
    let services = status.get_mut("services").map(serde_json::Value::take);
    Ok(Json(services).into_response())
}

#[utoipa::path(
    get, path = "/v1/services/{service}", params(("service" = String, Path)),
    responses((status = 200, description = "Done", body = ServiceView), Wrong, Missing, Broken)
)]
async fn service(State(daemon): Daemon, Names(service): Names<String>) -> Result<Response, Error> {
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

#[utoipa::path(get, path = "/v1/stats", responses((status = 200, description = "Done", body = Stats), Broken))]
async fn stats(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Stats).await
}

#[utoipa::path(get, path = "/v1/audit", responses((status = 200, description = "Done", body = Audit), Broken))]
async fn audit(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Audit).await
}

#[utoipa::path(
    post, path = "/v1/explain", request_body = ExplainRequest,
    responses((status = 200, description = "Done", body = Explained), Wrong, Broken)
)]
async fn explain(
    State(daemon): Daemon,
    Body(request): Body<ExplainRequest>,
) -> Result<Response, Error> {
    ask(&daemon, Command::Explain(request)).await
}

#[utoipa::path(
    post, path = "/v1/diff", request_body = DiffRequest,
    responses((status = 200, description = "Done", body = Diff), Wrong, Impossible, Broken)
)]
async fn diff(State(daemon): Daemon, Body(request): Body<DiffRequest>) -> Result<Response, Error> {
    ask(&daemon, Command::Diff(request)).await
}

#[utoipa::path(get, path = "/v1/guard", responses((status = 200, description = "Done", body = GuardView), Broken))]
async fn guard(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Guard).await
}

#[utoipa::path(
    post, path = "/v1/guard/test", request_body = GuardTest,
    responses((status = 200, description = "Done", body = GuardTested), Wrong, Broken)
)]
async fn test_guard(
    State(daemon): Daemon,
    Body(request): Body<GuardTest>,
) -> Result<Response, Error> {
    ask(&daemon, Command::GuardTest(request)).await
}

#[utoipa::path(
    post, path = "/v1/guard/load", request_body = ListLoad,
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Impossible, Broken)
)]
async fn load_list(
    State(daemon): Daemon,
    Body(request): Body<ListLoad>,
) -> Result<Response, Error> {
    ask(&daemon, Command::LoadList(request)).await
}

#[utoipa::path(
    post, path = "/v1/guard/reset", request_body = ListReset,
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Broken)
)]
async fn reset_list(
    State(daemon): Daemon,
    Body(request): Body<ListReset>,
) -> Result<Response, Error> {
    ask(&daemon, Command::ResetList(request)).await
}

#[utoipa::path(
    post, path = "/v1/reload",
    responses((status = 200, description = "Done", body = Done), Wrong, Impossible, Broken)
)]
async fn reload(State(daemon): Daemon) -> Result<Response, Error> {
    ask(&daemon, Command::Reload).await
}

#[utoipa::path(
    post, path = "/v1/services", request_body = ServiceSpec,
    responses((status = 200, description = "Done", body = Done), Wrong, Impossible, Broken)
)]
async fn add_service(
    State(daemon): Daemon,
    Body(spec): Body<ServiceSpec>,
) -> Result<Response, Error> {
    ask(&daemon, Command::AddService(Box::new(spec))).await
}

#[utoipa::path(
    delete, path = "/v1/services/{service}", params(("service" = String, Path)),
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Broken)
)]
async fn remove_service(
    State(daemon): Daemon,
    Names(service): Names<String>,
) -> Result<Response, Error> {
    ask(&daemon, Command::RemoveService(name("service", &service)?)).await
}

#[utoipa::path(
    post, path = "/v1/services/{service}/backends", params(("service" = String, Path)),
    request_body = BackendSpec,
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Impossible, Broken)
)]
async fn add_backend(
    State(daemon): Daemon,
    Names(service): Names<String>,
    Body(spec): Body<BackendSpec>,
) -> Result<Response, Error> {
    ask(
        &daemon,
        Command::AddBackend(name("service", &service)?, Box::new(spec)),
    )
    .await
}

#[utoipa::path(
    patch, path = "/v1/services/{service}/backends/{backend}",
    params(("service" = String, Path), ("backend" = String, Path)), request_body = BackendPatch,
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Broken)
)]
async fn patch_backend(
    State(daemon): Daemon,
    Names(names): Names<(String, String)>,
    Body(change): Body<BackendPatch>,
) -> Result<Response, Error> {
    ask(&daemon, Command::PatchBackend(backend_id(names)?, change)).await
}

#[utoipa::path(
    delete, path = "/v1/services/{service}/backends/{backend}",
    params(("service" = String, Path), ("backend" = String, Path), RemoveBackend),
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Broken)
)]
async fn remove_backend(
    State(daemon): Daemon,
    Names(names): Names<(String, String)>,
    Options(how): Options<RemoveBackend>,
) -> Result<Response, Error> {
    ask(&daemon, Command::RemoveBackend(backend_id(names)?, how)).await
}

#[utoipa::path(
    post, path = "/v1/interfaces", request_body = InterfaceSpec,
    responses((status = 200, description = "Done", body = Done), Wrong, Impossible, Broken)
)]
async fn attach(State(daemon): Daemon, Body(spec): Body<InterfaceSpec>) -> Result<Response, Error> {
    ask(&daemon, Command::Attach(spec)).await
}

#[utoipa::path(
    delete, path = "/v1/interfaces/{interface}", params(("interface" = String, Path)),
    responses((status = 200, description = "Done", body = Done), Wrong, Missing, Broken)
)]
async fn detach(State(daemon): Daemon, Names(interface): Names<String>) -> Result<Response, Error> {
    ask(&daemon, Command::Detach(interface)).await
}
