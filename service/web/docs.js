"use strict";
// Shows openapi.json in Swagger UI. If the service requires an API key, asks for it first.

const folder = location.pathname.slice(0, location.pathname.lastIndexOf("/"));

function locked(reason) {
  return {
    openapi: "3.1.0",
    info: { title: "Vidlex", version: "", description: reason },
    components: { securitySchemes: { bearer: { type: "http", scheme: "bearer", description: "An API key." } } },
    paths: {},
  };
}

async function load(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(`${folder}/openapi.json`, { headers });
  } catch {
    return locked("The service does not answer.");
  }
  if (response.status === 401) {
    return locked(key ? "The API key was refused." : "The service requires an API key: choose Authorize.");
  }
  if (!response.ok) return locked(`The service answered ${response.status}; try again later.`);
  const spec = await response.json();
  // Below a proxy's path, the servers are below it too.
  spec.servers = spec.servers.map((server) => ({ ...server, url: folder + server.url }));
  return spec;
}

const askForKey = () => ({
  statePlugins: {
    auth: {
      wrapActions: {
        authorize: (authorize, system) => (schemes) => {
          const [scheme] = Object.values(schemes);
          if (scheme) load(scheme.value).then((spec) => system.specActions.updateSpec(JSON.stringify(spec)));
          return authorize(schemes);
        },
      },
    },
  },
  wrapComponents: {
    // Without a document there are no operations, which Swagger UI reports as an error.
    operations: (Operations, { React }) => (props) =>
      props.specSelectors.taggedOperations().size ? React.createElement(Operations, props) : null,
  },
});

load().then((spec) => {
  SwaggerUIBundle({ spec, dom_id: "#docs", deepLinking: true, validatorUrl: null, plugins: [askForKey] });
});
