"""Serves Datasette as a careful site does: only scripts from files, and a theme for dark rooms."""

from datasette import hookimpl

POLICY = (b"content-security-policy", b"script-src 'self'")


@hookimpl
def asgi_wrapper(datasette):
    def wrap(app):
        async def strict(scope, receive, send):
            async def send_with_policy(event):
                if event["type"] == "http.response.start":
                    event = {**event, "headers": [*event["headers"], POLICY]}
                await send(event)

            await app(scope, receive, send_with_policy)

        return strict

    return wrap


@hookimpl
def extra_css_urls(datasette):
    return [datasette.urls.path("/theme/dark.css")]
