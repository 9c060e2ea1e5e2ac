use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::routing::{MethodFilter, on};
use utoipa::openapi::path::HttpMethod;
use utoipa::openapi::{OpenApi, Paths};

use super::routes::refuse;
use super::{BODY_MAX, Error};

/// The operations of the API: each is a route and a part of the document at once, so that there is
/// neither without the other.
pub(super) struct Operations<S> {
    router: Router<S>,
    paths: Paths,
}

impl<S: Clone + Send + Sync + 'static> Operations<S> {
    /// Returns none.
    pub fn new() -> Self {
        Self {
            router: Router::new(),
            paths: Paths::new(),
        }
    }

    /// Adds an operation: `P` is what `utoipa::path` made of its handler.
    pub fn with<P: utoipa::Path, T: 'static>(mut self, handler: impl Handler<T, S>) -> Self {
        for method in P::methods() {
            let route = on(filter(&method), handler.clone());
            self.router = self.router.route(&P::path(), route);
            self.paths
                .add_path_operation(P::path(), vec![method], P::operation());
        }
        self
    }

    /// Adds the operations to a document that has everything else.
    pub fn document(self, mut document: OpenApi) -> OpenApi {
        document.paths = self.paths;
        document
    }

    /// Returns the routes.
    pub fn router(self, state: S) -> Router {
        self.router
            .fallback(async || {
                Error::NotFound("there is no such route: see /v1/openapi.json".to_owned())
            })
            .method_not_allowed_fallback(async || {
                refuse(
                    StatusCode::METHOD_NOT_ALLOWED,
                    vec!["the route does not have this method: see /v1/openapi.json".to_owned()],
                )
            })
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(state)
    }
}

const fn filter(method: &HttpMethod) -> MethodFilter {
    match method {
        HttpMethod::Get => MethodFilter::GET,
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Delete => MethodFilter::DELETE,
        HttpMethod::Options => MethodFilter::OPTIONS,
        HttpMethod::Head => MethodFilter::HEAD,
        HttpMethod::Patch => MethodFilter::PATCH,
        HttpMethod::Trace => MethodFilter::TRACE,
    }
}
