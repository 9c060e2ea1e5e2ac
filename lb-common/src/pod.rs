//! `aya::Pod` for the map types: each is a `bytemuck::Pod`, which has no padding and no invalid
//! bit pattern.

macro_rules! pod {
    ($($type:ty),* $(,)?) => {
        $(
            const _: () = {
                const fn is_pod<T: bytemuck::Pod>() {}
                is_pod::<$type>();
            };
            // SAFETY: the line above proves that the type is `bytemuck::Pod`, which asks for all
            // that `aya::Pod` does: `Copy`, `'static`, no padding, every bit pattern valid.
            unsafe impl aya::Pod for $type {}
        )*
    };
}

pod! {
    crate::backend::Backend,
    crate::bench::Setup,
    crate::bucket::Rates,
    crate::bucket::ServiceBuckets,
    crate::bucket::SourceBuckets,
    crate::explain::Explanation,
    crate::flow::FlowEntry,
    crate::flow::FlowKey4,
    crate::flow::FlowKey6,
    crate::fragment::Fragment,
    crate::fragment::FragmentKey4,
    crate::fragment::FragmentKey6,
    crate::guard::GuardSettings,
    crate::guard::PrefixKey4,
    crate::guard::PrefixKey6,
    crate::hash::HashKey,
    crate::nat::NatSource,
    crate::row::Row,
    crate::service::Service,
    crate::service::ServiceKey4,
    crate::service::ServiceKey6,
    crate::settings::Settings,
    crate::stats::BackendStats,
    crate::stats::ServiceStats,
}
