"""The pages of `visits`, and those of `held_pages` under their functions' names."""

from django.urls import URLPattern, URLResolver, path

from neighbours import held_pages, visits

urlpatterns: list[URLPattern | URLResolver] = [
    *(
        path(f"<str:alias>/held/{page.__name__}/", page)
        for page in (
            *(held_pages.order, held_pages.session, held_pages.kinds),
            *(held_pages.waiting, held_pages.several, held_pages.nothing),
            *(held_pages.dropping, held_pages.stream, held_pages.coroutines),
            held_pages.gathering,
        )
    ),
    *visits.urlpatterns,
]
