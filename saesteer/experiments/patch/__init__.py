"""A patching run: settings, stages, figures and the site to steer."""
