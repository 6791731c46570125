package certificate

import (
	"bytes"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Keys in the Secret. cert-manager uses the first two as well.
const (
	crtKey         = corev1.TLSCertKey
	keyKey         = corev1.TLSPrivateKeyKey
	previousCrtKey = "previous.crt"
	previousKeyKey = "previous.key"
)

// look reads the Secret and does what there is to do at this time.
func (k *Keeper) look(ctx context.Context, now time.Time) error {
	secret, err := k.stored()
	if err != nil {
		return err
	}
	current, err := k.read(secret, crtKey, keyKey, now)
	if k.o.External {
		if err == nil {
			k.serve(current)
		}
		return err
	}
	previous, _ := k.read(secret, previousCrtKey, previousKeyKey, now)
	if err != nil || current.expiry().Sub(now) < k.o.Timing.Life/3 {
		return k.renew(ctx, secret, k.overlap(current, previous, now))
	}
	trusted, err := k.publish(ctx, current, previous)
	k.choose(current, previous, trusted, now)
	return err
}

// stored returns the Secret.
func (k *Keeper) stored() (*corev1.Secret, error) {
	if !k.secret.HasSynced() {
		return nil, notSent("Secret " + k.o.Namespace + "/" + k.o.Secret)
	}
	object, exists, err := k.secret.GetStore().GetByKey(k.o.Namespace + "/" + k.o.Secret)
	if err != nil || !exists {
		return nil, fmt.Errorf("Secret %s/%s does not exist: apply the webhook's manifests again", k.o.Namespace, k.o.Secret) //nolint:staticcheck // a kind
	}
	return object.(*corev1.Secret), nil
}

// read returns a certificate of the Secret that can serve now.
func (k *Keeper) read(s *corev1.Secret, crt, key string, now time.Time) (*pair, error) {
	p, err := parsePair(s.Data[crt], s.Data[key])
	if err == nil {
		err = p.check(k.o.Host, now)
	}
	if err == nil && !k.o.External {
		err = p.checkAuthority(now)
	}
	if err != nil {
		return nil, fmt.Errorf("the certificate in Secret %s/%s can't be used: %w", k.o.Namespace, k.o.Secret, err)
	}
	return p, nil
}

// overlap is the certificate to keep beside a new one: the one that the API servers know, if there is one.
func (k *Keeper) overlap(current, previous *pair, now time.Time) *pair {
	if current != nil {
		return current
	}
	if serving := k.serving.Load(); serving != nil && serving.check(k.o.Host, now) == nil { // somebody has emptied the Secret
		return serving
	}
	return previous
}

// renew writes a new certificate. If another replica has written one meanwhile, that one holds.
func (k *Keeper) renew(ctx context.Context, secret *corev1.Secret, previous *pair) error {
	made, err := newPair(k.o.Host, k.o.Timing.Life)
	if err != nil {
		return err
	}
	secret = secret.DeepCopy()
	secret.Data = map[string][]byte{crtKey: made.crt, keyKey: made.key}
	if previous != nil {
		secret.Data[previousCrtKey], secret.Data[previousKeyKey] = previous.crt, previous.key
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	err = k.core.Put().Namespace(k.o.Namespace).Resource("secrets").Name(k.o.Secret).Body(secret).Do(ctx).Error()
	switch {
	case apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("write a new certificate: %w", err)
	}
	k.o.Log.Info("certificate made", "event", "certificate-made", "host", k.o.Host, "expires", made.expiry())
	return nil
}

// publish puts the authorities into the caBundles, and reports whether they were all there.
func (k *Keeper) publish(ctx context.Context, current, previous *pair) (trusted bool, err error) {
	authorities := [][]byte{current.authority()}
	if previous != nil {
		authorities = append(authorities, previous.authority())
	}
	trusted = true
	for _, h := range k.hooks {
		lacking, err := h.lacking(authorities)
		if err != nil {
			return false, err
		}
		if len(lacking) == 0 {
			continue
		}
		trusted = false
		if err := h.patch(ctx, k.o.Configuration, lacking, bytes.Join(authorities, nil)); err != nil {
			return false, err
		}
		k.o.Log.Info("caBundle written", "event", "ca-bundle-written", "resource", h.resource, "webhooks", lacking)
	}
	return trusted, nil
}

// choose serves the current certificate once the API servers know its authority, or if there is no other.
func (k *Keeper) choose(current, previous *pair, trusted bool, now time.Time) {
	switch {
	case !trusted:
		k.settling = nil
	case !current.equal(k.settling):
		k.settling, k.since = current, now
	}
	k.mu.Lock()
	k.trusted = k.trusted || trusted
	k.mu.Unlock()
	settled := k.settling != nil && now.Sub(k.since) >= k.o.Timing.Settle
	if previous == nil || settled || current.equal(k.serving.Load()) {
		k.serve(current)
		return
	}
	k.serve(previous)
}

func (k *Keeper) serve(p *pair) {
	if p.equal(k.serving.Load()) {
		return
	}
	k.serving.Store(p)
	k.o.Log.Info("certificate in use", "event", "certificate-used", "expires", p.expiry())
}
